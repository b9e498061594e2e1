"""Sigmoid linear unit, y = x sigmoid(x), also called swish (Elfwing et al. 2017; Ramachandran et al. 2017)."""

from __future__ import annotations

import numpy as np

from lepton_mpi import native
from lepton_mpi.ops.array_module import Array
from lepton_mpi.ops.checks import check_shape
from lepton_mpi.ops.native_path import runs_native
from lepton_mpi.ops.softplus import logistic


def silu(x: Array) -> Array:
    """Return x / (1 + exp(-x)) as a new array of any shape; NaN stays NaN. Local.

    Args:
        x: float32 or float64, any shape.
    """
    if not runs_native(x):
        return silu_reference(x)[0]
    x = np.ascontiguousarray(x)
    y = np.empty_like(x)
    native.silu(x.reshape(-1), y.reshape(-1), None)
    return y


def silu_with_slope(x: Array) -> tuple[Array, Array]:
    """Return silu(x) and its derivative s (1 + x (1 - s)) with s = sigmoid(x). Local.

    The two share their dear part, and the derivative takes the place of x in what the backward pass keeps.

    Args:
        x: float32 or float64, any shape.

    Returns:
        Two new arrays of the shape of x.
    """
    if not runs_native(x):
        return silu_reference(x)
    x = np.ascontiguousarray(x)
    y, slope = np.empty_like(x), np.empty_like(x)
    native.silu(x.reshape(-1), y.reshape(-1), slope.reshape(-1))
    return y, slope


def silu_backward(dy: Array, slope: Array) -> Array:
    """Return dx = dy slope. Local.

    Args:
        dy: gradient of the output.
        slope: same shape, from `silu_with_slope`.

    Returns:
        A new array of that shape.

    Raises:
        ValueError: the shapes differ.
    """
    check_shape("dy", dy, slope.shape)
    return dy * slope


def silu_reference(x: Array) -> tuple[Array, Array]:
    """Return what `silu_with_slope` does, in NumPy or CuPy. Local."""
    s = logistic(x)
    return x * s, s + x * s * (1 - s)
