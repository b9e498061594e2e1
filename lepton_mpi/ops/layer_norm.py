"""Layer normalisation of the last dim (Ba, Kiros, Hinton 2016). Dims: R rows (all dims but the last), C features."""

from __future__ import annotations

import math

import numpy as np

from lepton_mpi import native
from lepton_mpi.ops.array_module import Array, array_module
from lepton_mpi.ops.checks import check_shape
from lepton_mpi.ops.native_path import runs_native


def layer_norm(x: Array, weight: Array, bias: Array | None, epsilon: float) -> tuple[Array, Array, Array]:
    """Return (x - mean) / sqrt(variance + epsilon) * weight + bias, and mean and rstd of every row. Local.

    The variance is the biased one, from a second pass over the row.

    Args:
        x: [..., C], float32 or float64; may have no rows.
        weight: [C].
        bias: [C], or None.
        epsilon: added to the variance.

    Returns:
        New arrays: y of the shape of x, mean [R], rstd = 1 / sqrt(variance + epsilon) [R].

    Raises:
        ValueError: the shapes do not fit.
    """
    _check(x, weight, bias)
    if not runs_native(x, weight):
        return layer_norm_reference(x, weight, bias, epsilon)
    x = np.ascontiguousarray(x)
    rows = math.prod(x.shape[:-1])
    y, mean, rstd = np.empty_like(x), np.empty(rows, x.dtype), np.empty(rows, x.dtype)
    native.layer_norm(x.reshape(-1), weight, bias, y.reshape(-1), mean, rstd, epsilon)
    return y, mean, rstd


def layer_norm_backward(
    dy: Array, x: Array, weight: Array, mean: Array, rstd: Array, want_dx: bool = True
) -> tuple[Array | None, Array, Array]:
    """Return dx, dweight and dbias, all from one pass. Local.

    Args:
        dy: gradient of the output, shape of x.
        x: [..., C], the input.
        weight: [C].
        mean, rstd: [R], from the forward pass.
        want_dx: False where nobody needs dx; None is returned for it then.

    Returns:
        New arrays: dx of the shape of x, dweight [C], dbias [C].

    Raises:
        ValueError: the shapes do not fit.
    """
    _check(x, weight, None)
    check_shape("dy", dy, x.shape)
    if not runs_native(dy, x, weight):
        return layer_norm_backward_reference(dy, x, weight, mean, rstd, want_dx)
    dy, x = np.ascontiguousarray(dy), np.ascontiguousarray(x)
    dx = np.empty_like(x) if want_dx else None
    dweight, dbias = np.empty_like(weight), np.empty_like(weight)
    flat_dx = dx.reshape(-1) if dx is not None else None
    native.layer_norm_backward(dy.reshape(-1), x.reshape(-1), weight, mean, rstd, flat_dx, dweight, dbias)
    return dx, dweight, dbias


def layer_norm_reference(x: Array, weight: Array, bias: Array | None, epsilon: float) -> tuple[Array, Array, Array]:
    """Return what `layer_norm` does, in NumPy or CuPy. Local."""
    mean = x.mean(axis=-1, keepdims=True)
    rstd = 1 / array_module(x).sqrt(((x - mean) ** 2).mean(axis=-1, keepdims=True) + x.dtype.type(epsilon))
    y = (x - mean) * rstd * weight
    if bias is not None:
        y += bias
    return y, mean.reshape(-1), rstd.reshape(-1)


def layer_norm_backward_reference(
    dy: Array, x: Array, weight: Array, mean: Array, rstd: Array, want_dx: bool = True
) -> tuple[Array | None, Array, Array]:
    """Return what `layer_norm_backward` does, in NumPy or CuPy. Local."""
    shape = (*x.shape[:-1], 1)
    rstd = rstd.reshape(shape)
    normalised = (x - mean.reshape(shape)) * rstd
    rows = tuple(range(x.ndim - 1))
    dweight, dbias = (dy * normalised).sum(axis=rows), dy.sum(axis=rows)
    if not want_dx:
        return None, dweight, dbias
    gradient = dy * weight
    shift = gradient.mean(axis=-1, keepdims=True)
    slope = (gradient * normalised).mean(axis=-1, keepdims=True)
    return (gradient - shift - normalised * slope) * rstd, dweight, dbias


def _check(x: Array, weight: Array, bias: Array | None) -> None:
    """Require [..., C], [C] and maybe [C]."""
    check_shape("weight", weight, (None,))
    check_shape("x", x, (*x.shape[:-1], weight.shape[0]))
    if bias is not None:
        check_shape("bias", bias, weight.shape)
