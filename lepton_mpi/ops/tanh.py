"""Hyperbolic tangent, element by element."""

from __future__ import annotations

from lepton_mpi.ops.array_module import Array, array_module
from lepton_mpi.ops.checks import check_shape


def tanh(x: Array) -> Array:
    """Return tanh(x) as a new array. Local.

    Args:
        x: any shape, floating point.
    """
    y: Array = array_module(x).tanh(x)
    return y


def tanh_backward(dy: Array, y: Array) -> Array:
    """Return dx = dy (1 - y^2) as a new array. Local.

    Args:
        dy: gradient of y.
        y: what `tanh` returned.

    Raises:
        ValueError: the shapes differ.
    """
    check_shape("dy", dy, y.shape)
    dx: Array = dy * (1 - y * y)
    return dx
