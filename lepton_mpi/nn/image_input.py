"""The first layer of image models: samples as they are stored become channels-last images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from lepton_mpi.errors import ConfigError
from lepton_mpi.nn.layer import Layer, Shapes, require_shape
from lepton_mpi.nn.module import Context, Module
from lepton_mpi.nn.parameter import Parameter
from lepton_mpi.nn.place import Place
from lepton_mpi.ops.array_module import array_module

# Where a stored image has its channels: [C, H, W], [H, W, C] or [H, W].
Channels: TypeAlias = Literal["first", "last", "none"]

# Numbers of channels that images have: grey, colours, colours and transparency.
_USUAL_COUNTS = (1, 3, 4)


def image_geometry(input_shape: tuple[int, ...], channels: Literal["auto"] | Channels = "auto") -> tuple[int, int, int, Channels]:
    """Return (height, width, number of channels, where they are) of stored samples. Local.

    Args:
        input_shape: shape of one sample.
        channels: "auto" takes a first or last dim of 1, 3 or 4 for the channels.

    Raises:
        ConfigError: they are no images, or it cannot be guessed where the channels are.
    """
    if len(input_shape) == 2 and channels in ("auto", "none"):
        return *input_shape, 1, "none"
    if len(input_shape) != 3 or channels == "none":
        wanted = {"first": "[C, H, W]", "last": "[H, W, C]", "none": "[H, W]", "auto": "[H, W], [C, H, W] or [H, W, C]"}
        raise ConfigError(
            f"model.channels = {channels!r}: expected images of shape {wanted[channels]}, got samples of shape {input_shape}"
        )
    if channels == "auto":
        is_first, is_last = input_shape[0] in _USUAL_COUNTS, input_shape[2] in _USUAL_COUNTS
        if is_first == is_last:
            raise ConfigError(
                f"cannot tell which dim of samples of shape {input_shape} is the channels: set model.channels to 'first' or 'last'"
            )
        channels = "first" if is_first else "last"
    if channels == "first":
        return input_shape[1], input_shape[2], input_shape[0], "first"
    return *input_shape, "last"


@dataclass(frozen=True)
class ImageInput(Layer):
    """Samples as they are stored to images [H, W, C].

    Attributes:
        input_shape: shape of one stored sample.
        channels: where its channels are.
    """

    input_shape: tuple[int, ...]
    channels: Channels

    def output(self, shapes: Shapes) -> Shapes:
        """Return [H, W, C]."""
        require_shape(self, shapes, self.input_shape)
        return (image_geometry(self.input_shape, self.channels)[:3],)

    def build(self, parameters: Mapping[str, Parameter], place: Place) -> Module:
        """Return the layer at work."""
        return ImageInputModule(self.channels)


class ImageInputModule(Module):
    """Samples as they are stored to contiguous images [B, H, W, C]."""

    def __init__(self, channels: Channels) -> None:
        """Make it for images with channels there."""
        self._channels = channels

    def forward(self, x: Any, context: Context) -> tuple[Any, Any]:
        """Return y [B, H, W, C]."""
        y = x.transpose(0, 2, 3, 1) if self._channels == "first" else x[..., None] if self._channels == "none" else x
        return array_module(x).ascontiguousarray(y), None

    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        """Return dx in the shape of the stored samples."""
        if not want_dx:
            return None, None
        return dy.transpose(0, 3, 1, 2) if self._channels == "first" else dy[..., 0] if self._channels == "none" else dy, None
