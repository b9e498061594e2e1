"""Squared differences. Dims: any; values that belong together have the same place."""

from __future__ import annotations

import numpy as np

from lepton_mpi.ops.array_module import Array
from lepton_mpi.ops.checks import check_shape


def squared_error(outputs: Array, targets: Array) -> float:
    """Return the sum of (output - target)^2, in float64. Local.

    Args:
        outputs: [N, ...]; N may be 0.
        targets: of the outputs' shape.

    Raises:
        ValueError: the shapes differ.
    """
    check_shape("targets", targets, outputs.shape)
    differences = outputs.astype(np.float64) - targets
    return float((differences * differences).sum())


def squared_error_backward(outputs: Array, targets: Array, factor: float) -> Array:
    """Return factor * d error / d outputs = 2 factor (output - target). Local.

    Args:
        outputs: as in `squared_error`.
        targets: likewise.
        factor: factor of the gradient.

    Returns:
        A new array of the outputs' shape and dtype.

    Raises:
        ValueError: the shapes differ.
    """
    check_shape("targets", targets, outputs.shape)
    doutputs: Array = ((outputs - targets) * (2.0 * factor)).astype(outputs.dtype, copy=False)
    return doutputs
