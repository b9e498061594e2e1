"""How many windows of a layer fit on its images, with errors that a user of the configuration understands."""

from __future__ import annotations

from lepton_mpi.errors import ConfigError
from lepton_mpi.nn.layer import Layer
from lepton_mpi.ops.windows import Pair, Windows


def window_counts(layer: Layer, windows: Windows, shape: tuple[int, ...]) -> Pair:
    """Return (rows, columns) of windows on a sample [H, W, C]. Local.

    Raises:
        ConfigError: none fits.
    """
    try:
        return windows.counts(shape[0], shape[1])
    except ValueError as error:
        raise ConfigError(f"layer {layer.name}: {error}: use larger images, or fewer layers that shrink them") from None
