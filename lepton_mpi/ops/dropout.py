"""Dropout (Srivastava et al. 2014), scaled in training, with masks that depend on the global element alone.

Dims: B samples, n elements of a sample that are here.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lepton_mpi import native
from lepton_mpi.ops.array_module import Array, array_module
from lepton_mpi.ops.checks import check_shape
from lepton_mpi.ops.native_path import runs_native
from lepton_mpi.runtime.random import philox


def dropout(x: Array, rate: float, key: int, step: int, first_row: int, row_size: int, row_start: int = 0) -> tuple[Array, Array]:
    """Return x with elements set to 0 at random and the others divided by 1 - rate, and the mask. Local.

    Args:
        x: [B, ...], n elements a sample in C order; B may be 0. NaN stays NaN where it is dropped.
        rate: probability of 0, in [0, 1).
        key: of the layer, see `random_key`.
        step, first_row, row_size, row_start: see `dropout_mask`.

    Returns:
        New arrays of the shape of x: y, and the mask for `dropout_backward`.

    Raises:
        ValueError: the rate is outside of [0, 1), or a sample here is longer than the global one.
    """
    if not runs_native(x):
        mask = array_module(x).asarray(dropout_mask(x.shape, rate, key, step, first_row, row_size, row_start))
        return dropout_backward(x, mask, rate), mask
    threshold = _threshold(rate)
    _check_row(x.shape, row_size, row_start)
    x = np.ascontiguousarray(x)
    y, mask = np.empty_like(x), np.empty(x.shape, bool)
    flat = mask.reshape(-1).view(np.uint8)
    place = (len(x), key, step, first_row, row_size, row_start, threshold)
    native.dropout(x.reshape(-1), y.reshape(-1), flat, 1 / (1 - rate), *place)
    return y, mask


def dropout_backward(dy: Array, mask: Array, rate: float) -> Array:
    """Return dx = dy mask / (1 - rate). Local.

    Args:
        dy: gradient of the output.
        mask: bool, same shape, from the forward pass.
        rate: as in the forward pass.

    Returns:
        A new array of that shape.

    Raises:
        ValueError: the shapes differ.
    """
    check_shape("mask", mask, dy.shape)
    scale = 1 / (1 - rate)
    if not runs_native(dy):
        dx: Array = dy * (mask * dy.dtype.type(scale))
        return dx
    dy, mask = np.ascontiguousarray(dy), np.ascontiguousarray(mask)
    dx = np.empty_like(dy)
    native.apply_mask(dy.reshape(-1), mask.reshape(-1).view(np.uint8), scale, dx.reshape(-1))
    return dx


def dropout_mask(
    shape: tuple[int, ...], rate: float, key: int, step: int, first_row: int, row_size: int, row_start: int = 0
) -> NDArray[np.bool_]:
    """Return which elements are kept: True with probability 1 - rate. Local.

    Element e of global row r has the random word k % 4 of Philox counter k // 4 in the stream of the step, with
    k = r row_size + e, and is kept when its word is at least rate 2^32.

    Args:
        shape: [B, ...], n elements a sample.
        rate: probability of False, in [0, 1).
        key: of the layer, see `random_key`.
        step: number of the training step.
        first_row: global number of the first sample.
        row_size: elements of a whole sample over all shards.
        row_start: where the n elements that are here begin in their sample.

    Returns:
        A new NumPy array.

    Raises:
        ValueError: the rate is outside of [0, 1), or a sample here is longer than the global one.
    """
    threshold = _threshold(rate)
    _check_row(shape, row_size, row_start)
    mask = np.empty(shape, bool)
    native.dropout_mask(mask.reshape(-1).view(np.uint8), shape[0], key, step, first_row, row_size, row_start, threshold)
    return mask


def dropout_mask_reference(
    shape: tuple[int, ...], rate: float, key: int, step: int, first_row: int, row_size: int, row_start: int = 0
) -> NDArray[np.bool_]:
    """Return what `dropout_mask` does, bit for bit, in NumPy. Local."""
    rows = np.arange(first_row, first_row + shape[0])[:, None]
    element = (rows * row_size + np.arange(row_start, row_start + math.prod(shape[1:]))).astype(np.uint64)
    words = philox(key, element >> np.uint64(2), step)
    words = np.take_along_axis(words, (element & np.uint64(3)).astype(np.int64)[..., None], axis=-1)
    return (words >= _threshold(rate)).reshape(shape)


def _threshold(rate: float) -> int:
    """Return the smallest random word that keeps an element."""
    if not 0 <= rate < 1:
        raise ValueError(f"rate: expected a probability in [0, 1), received {rate}")
    return min(round(rate * 2**32), 2**32 - 1)


def _check_row(shape: tuple[int, ...], row_size: int, row_start: int) -> None:
    """Require that the elements of a sample lie inside of the global sample."""
    if row_start < 0 or row_start + math.prod(shape[1:]) > row_size:
        raise ValueError(f"shape: expected samples of at most {row_size} elements from element {row_start} on, received {shape}")
