"""Batch normalisation in pieces, so that several ranks can normalise by the statistics of all their samples.

Ioffe and Szegedy 2015, "Batch normalization: accelerating deep network training by reducing internal covariate shift".

Dims: N rows (samples times positions), C channels, R ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lepton_mpi import native
from lepton_mpi.ops.array_module import Array, array_module
from lepton_mpi.ops.checks import check_shape


@dataclass(frozen=True)
class Moments:
    """Mean and spread of each channel over some rows.

    Attributes:
        count: number of rows.
        mean: float64 [C]; zeros where there are no rows.
        squares: float64 [C], sum of the squared distances from the mean.
    """

    count: int
    mean: Array
    squares: Array

    def deviation_inverse(self, epsilon: float) -> Array:
        """Return 1 / sqrt(variance + epsilon), float64 [C]; the variance divides by the count. Local."""
        inverse: Array = 1 / array_module(self.mean).sqrt(self.squares / max(self.count, 1) + epsilon)
        return inverse


def channel_moments(x: Array) -> Moments:
    """Return the moments of each channel, summed in float64. Local.

    The native path reads x once, and the order of its additions is fixed.

    Args:
        x: [..., C], float32 or float64; may be empty.
    """
    xp = array_module(x)
    rows = _rows(x)
    if len(rows) == 0:
        return Moments(0, xp.zeros(rows.shape[1]), xp.zeros(rows.shape[1]))
    if not _is_native(x):
        return channel_moments_reference(x)
    mean, squares = np.empty(rows.shape[1]), np.empty(rows.shape[1])
    native.channel_moments(rows, mean, squares)
    return Moments(len(rows), mean, squares)


def channel_moments_reference(x: Array) -> Moments:
    """Return what `channel_moments` returns for an x that is not empty, in two passes. Local."""
    rows = _rows(x)
    mean = rows.mean(axis=0, dtype=np.float64)
    return Moments(len(rows), mean, ((rows - mean) ** 2).sum(axis=0))


def merge_moments(counts: Array, means: Array, squares: Array) -> Moments:
    """Return the moments of all ranks' rows together, added in rank order. Local.

    Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances", eq. 2.1.

    Args:
        counts: [R], rows of each rank; may be 0.
        means: float64 [R, C].
        squares: float64 [R, C].

    Raises:
        ValueError: the shapes do not fit.
    """
    check_shape("means", means, (len(counts), None))
    check_shape("squares", squares, means.shape)
    count, mean, total = 0, means[0] * 0, squares[0] * 0
    for new, new_mean, new_squares in zip(counts, means, squares, strict=True):
        new = int(new)
        if new == 0:
            continue
        difference = new_mean - mean
        share = new / (count + new)
        mean = mean + difference * share
        total = total + new_squares + difference**2 * (count * share)
        count += new
    return Moments(count, mean, total)


def batch_norm(x: Array, mean: Array, deviation_inverse: Array, weight: Array, bias: Array) -> Array:
    """Return (x - mean) * deviation_inverse * weight + bias for each channel. Local.

    Args:
        x: [..., C].
        mean, deviation_inverse: float64 [C].
        weight, bias: [C].

    Returns:
        A new array of the shape and dtype of x.

    Raises:
        ValueError: the shapes do not fit.
    """
    mean, scale, shift = _cast(x, mean, weight * deviation_inverse, bias)
    if not _is_native(x):
        return batch_norm_reference(x, mean, scale, shift)
    y = np.empty(x.shape, np.float32)
    native.channel_affine(_rows(x), mean, scale, shift, _rows(y))
    return y


def batch_norm_reference(x: Array, mean: Array, scale: Array, shift: Array) -> Array:
    """Return (x - mean) * scale + shift, as the native path computes it. Local."""
    y: Array = (x - mean) * scale + shift
    return y


def batch_norm_sums(dy: Array, x: Array, mean: Array, deviation_inverse: Array) -> tuple[Array, Array]:
    """Return the sums over the rows of dy and of dy * normalised x, float64 [C] each. Local.

    They are the gradients of bias and weight, and what `batch_norm_backward_input` needs of all ranks.

    Args:
        dy: [..., C].
        x: the input of the forward pass, same shape.
        mean, deviation_inverse: as in the forward pass.

    Raises:
        ValueError: the shapes do not fit.
    """
    check_shape("dy", dy, x.shape)
    check_shape("mean", mean, (x.shape[-1],))
    if not _is_native(x):
        return batch_norm_sums_reference(dy, x, mean, deviation_inverse)
    sum_dy, sum_dy_x = np.empty(x.shape[-1]), np.empty(x.shape[-1])
    native.channel_gradient_sums(_rows(dy), _rows(x), mean, sum_dy, sum_dy_x)
    return sum_dy, sum_dy_x * deviation_inverse


def batch_norm_sums_reference(dy: Array, x: Array, mean: Array, deviation_inverse: Array) -> tuple[Array, Array]:
    """Return what `batch_norm_sums` returns, for any array module and dtype. Local."""
    rows = _rows(dy)
    return rows.sum(axis=0, dtype=np.float64), (rows * (_rows(x) - mean)).sum(axis=0) * deviation_inverse


def batch_norm_backward_input(
    dy: Array,
    x: Array,
    mean: Array,
    deviation_inverse: Array,
    weight: Array,
    sum_dy: Array,
    sum_dy_xhat: Array,
    count: int,
) -> Array:
    """Return dx, where mean and deviation depend on x too (Ioffe and Szegedy 2015, section 3). Local.

    Args:
        dy: [..., C].
        x: the input of the forward pass, same shape.
        mean, deviation_inverse, weight: as in the forward pass.
        sum_dy, sum_dy_xhat: float64 [C], the sums of `batch_norm_sums` over all ranks.
        count: rows of all ranks.

    Returns:
        A new array of the shape and dtype of x.

    Raises:
        ValueError: the shapes do not fit.
    """
    check_shape("dy", dy, x.shape)
    scale = weight * deviation_inverse
    factor = -scale / max(count, 1)
    mean, scale, slope, shift = _cast(x, mean, scale, factor * deviation_inverse * sum_dy_xhat, factor * sum_dy)
    if not _is_native(x):
        return batch_norm_backward_input_reference(dy, x, mean, scale, slope, shift)
    dx = np.empty(x.shape, np.float32)
    native.channel_gradient(_rows(dy), _rows(x), mean, scale, slope, shift, _rows(dx))
    return dx


def batch_norm_backward_input_reference(dy: Array, x: Array, mean: Array, scale: Array, slope: Array, shift: Array) -> Array:
    """Return dy * scale + (x - mean) * slope + shift, as the native path computes it. Local."""
    dx: Array = dy * scale + ((x - mean) * slope + shift)
    return dx


def _is_native(x: Array) -> bool:
    return array_module(x) is np and x.dtype == np.float32


def _rows(x: Array) -> Array:
    """Return x as [N, C], contiguous; a view where it is."""
    rows: Array = array_module(x).ascontiguousarray(x)
    return rows.reshape(rows.size // max(x.shape[-1], 1), x.shape[-1])


def _cast(x: Array, *channels: Array) -> list[Array]:
    """Return values of the channels in the dtype of x; they must be [C]."""
    for values in channels:
        check_shape("channels", values, (x.shape[-1],))
    return [array_module(x).ascontiguousarray(values, dtype=x.dtype) for values in channels]
