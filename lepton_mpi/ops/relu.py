"""Rectified linear unit, y = max(x, 0)."""

from __future__ import annotations

from lepton_mpi.ops.array_module import Array, array_module
from lepton_mpi.ops.checks import check_shape


def relu(x: Array) -> Array:
    """Return max(x, 0) as a new array of any shape; NaN stays NaN. Local."""
    y: Array = array_module(x).maximum(x, x.dtype.type(0))
    return y


def relu_backward(dy: Array, y: Array) -> Array:
    """Return dx = dy * (y > 0). Local.

    The output serves as well as the input, and is what the next layer keeps anyway.

    Args:
        dy: gradient of the output.
        y: the output, same shape.

    Returns:
        A new array of that shape.

    Raises:
        ValueError: the shapes differ.
    """
    check_shape("dy", dy, y.shape)
    dx: Array = dy * (y > 0)
    return dx
