"""Root mean square normalisation of the last dim (Zhang, Sennrich 2019). Dims: R rows (all dims but the last), C features."""

from __future__ import annotations

import math

import numpy as np

from lepton_mpi import native
from lepton_mpi.ops.array_module import Array, array_module
from lepton_mpi.ops.checks import check_shape
from lepton_mpi.ops.native_path import runs_native


def rms_norm(x: Array, weight: Array, epsilon: float) -> tuple[Array, Array]:
    """Return x / sqrt(mean of x^2 + epsilon) * weight, and rstd of every row. Local.

    Args:
        x: [..., C], float32 or float64; may have no rows.
        weight: [C].
        epsilon: added to the mean square.

    Returns:
        New arrays: y of the shape of x, rstd = 1 / sqrt(mean square + epsilon) [R].

    Raises:
        ValueError: the shapes do not fit.
    """
    _check(x, weight)
    if not runs_native(x, weight):
        return rms_norm_reference(x, weight, epsilon)
    x = np.ascontiguousarray(x)
    y, rstd = np.empty_like(x), np.empty(math.prod(x.shape[:-1]), x.dtype)
    native.rms_norm(x.reshape(-1), weight, y.reshape(-1), rstd, epsilon)
    return y, rstd


def rms_norm_backward(dy: Array, x: Array, weight: Array, rstd: Array, want_dx: bool = True) -> tuple[Array | None, Array]:
    """Return dx and dweight, both from one pass. Local.

    Args:
        dy: gradient of the output, shape of x.
        x: [..., C], the input.
        weight: [C].
        rstd: [R], from the forward pass.
        want_dx: False where nobody needs dx; None is returned for it then.

    Returns:
        New arrays: dx of the shape of x, dweight [C].

    Raises:
        ValueError: the shapes do not fit.
    """
    _check(x, weight)
    check_shape("dy", dy, x.shape)
    if not runs_native(dy, x, weight):
        return rms_norm_backward_reference(dy, x, weight, rstd, want_dx)
    dy, x = np.ascontiguousarray(dy), np.ascontiguousarray(x)
    dx, dweight = np.empty_like(x) if want_dx else None, np.empty_like(weight)
    native.rms_norm_backward(dy.reshape(-1), x.reshape(-1), weight, rstd, dx.reshape(-1) if dx is not None else None, dweight)
    return dx, dweight


def rms_norm_reference(x: Array, weight: Array, epsilon: float) -> tuple[Array, Array]:
    """Return what `rms_norm` does, in NumPy or CuPy. Local."""
    rstd = 1 / array_module(x).sqrt((x * x).mean(axis=-1, keepdims=True) + x.dtype.type(epsilon))
    return x * rstd * weight, rstd.reshape(-1)


def rms_norm_backward_reference(
    dy: Array, x: Array, weight: Array, rstd: Array, want_dx: bool = True
) -> tuple[Array | None, Array]:
    """Return what `rms_norm_backward` does, in NumPy or CuPy. Local."""
    rstd = rstd.reshape(*x.shape[:-1], 1)
    normalised = x * rstd
    dweight = (dy * normalised).sum(axis=tuple(range(x.ndim - 1)))
    if not want_dx:
        return None, dweight
    gradient = dy * weight
    slope = (gradient * normalised).mean(axis=-1, keepdims=True)
    return (gradient - normalised * slope) * rstd, dweight


def _check(x: Array, weight: Array) -> None:
    """Require [..., C] and [C]."""
    check_shape("weight", weight, (None,))
    check_shape("x", x, (*x.shape[:-1], weight.shape[0]))
