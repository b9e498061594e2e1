"""Largest and mean pixel of windows over images. Dims: B images, H height, W width, C channels, OH and OW size of the output."""

from __future__ import annotations

import math

import numpy as np

from lepton_mpi import native
from lepton_mpi.ops.array_module import Array, array_module
from lepton_mpi.ops.checks import check_shape
from lepton_mpi.ops.windows import Pair, Windows


def max_pool2d(x: Array, *, kernel: Pair, stride: Pair, padding: Pair = (0, 0)) -> tuple[Array, Array]:
    """Return the largest pixel of each window and where it lies; NaN where there is one. Local.

    Args:
        x: [B, H, W, C]; B may be 0.
        kernel, stride, padding: (height, width); pixels of the padding are never the largest.

    Returns:
        y [B, OH, OW, C] and places, int32 of that shape: row * W + column of the pixel, the first one of several.

    Raises:
        ValueError: the image is smaller than a window, or the padding is larger than half of the kernel.
    """
    check_shape("x", x, (None, None, None, None))
    windows = _pooling_windows(kernel, stride, padding)
    if array_module(x) is not np or x.dtype != np.float32:
        return max_pool2d_reference(x, kernel=kernel, stride=stride, padding=padding)
    y = np.empty((x.shape[0], *windows.counts(x.shape[1], x.shape[2]), x.shape[3]), np.float32)
    places = np.empty(y.shape, np.int32)
    native.max_pool2d(np.ascontiguousarray(x), y, places, kernel, stride, padding)
    return y, places


def max_pool2d_reference(x: Array, *, kernel: Pair, stride: Pair, padding: Pair = (0, 0)) -> tuple[Array, Array]:
    """Return what `max_pool2d` returns, for any array module and dtype, tap by tap. Local."""
    xp = array_module(x)
    windows = _pooling_windows(kernel, stride, padding)
    shape = (x.shape[0], *windows.counts(x.shape[1], x.shape[2]), x.shape[3])
    y, places = xp.full(shape, -math.inf, x.dtype), xp.full(shape, -1, np.int32)
    for place, (_, _, pixels) in zip(_tap_places(x, windows), windows.taps(windows.pad(x, -math.inf)), strict=True):
        # Anything real takes the place of padding, even minus infinity; a NaN takes the place of any number and keeps it.
        larger = (pixels > y) | ((pixels != pixels) & (y == y)) | ((places < 0) & (place >= 0))
        y, places = xp.where(larger, pixels, y), xp.where(larger, place, places)
    return y, places


def max_pool2d_backward(
    dy: Array, places: Array, input_shape: tuple[int, ...], *, kernel: Pair, stride: Pair, padding: Pair = (0, 0)
) -> Array:
    """Return dx: each value of dy at the place of its pixel. Local.

    Args:
        dy: [B, OH, OW, C].
        places: from the forward pass.
        input_shape: shape of x, [B, H, W, C].
        kernel, stride, padding: as in the forward pass.

    Returns:
        A new array [B, H, W, C].

    Raises:
        ValueError: the shapes do not fit.
    """
    check_shape("dy", dy, places.shape)
    windows = _pooling_windows(kernel, stride, padding)
    check_shape("dy", dy, (input_shape[0], *windows.counts(input_shape[1], input_shape[2]), input_shape[3]))
    xp = array_module(dy)
    dx: Array = xp.zeros(input_shape, dy.dtype)
    if xp is np and dy.dtype == np.float32:
        native.max_pool2d_backward_add(np.ascontiguousarray(dy), places, dx)
        return dx
    padded = windows.pad(dx)
    for place, (_, _, pixels) in zip(_tap_places(dx, windows), windows.taps(padded), strict=True):
        pixels += xp.where(places == place, dy, dy.dtype.type(0))
    return windows.unpad(padded)


def avg_pool2d(x: Array, *, kernel: Pair, stride: Pair, padding: Pair = (0, 0)) -> Array:
    """Return the mean of each window; zeros of the padding count. Local.

    Args:
        x: [B, H, W, C]; B may be 0.
        kernel, stride, padding: (height, width).

    Returns:
        A new array [B, OH, OW, C].

    Raises:
        ValueError: the image is smaller than a window, or the padding is larger than half of the kernel.
    """
    check_shape("x", x, (None, None, None, None))
    windows = _pooling_windows(kernel, stride, padding)
    y: Array = array_module(x).zeros((x.shape[0], *windows.counts(x.shape[1], x.shape[2]), x.shape[3]), x.dtype)
    for _, _, pixels in windows.taps(windows.pad(x)):
        y += pixels
    y *= x.dtype.type(1 / math.prod(kernel))
    return y


def avg_pool2d_backward(dy: Array, input_shape: tuple[int, ...], *, kernel: Pair, stride: Pair, padding: Pair = (0, 0)) -> Array:
    """Return dx: each value of dy in equal parts to the pixels of its window. Local.

    Args:
        dy: [B, OH, OW, C].
        input_shape: shape of x, [B, H, W, C].
        kernel, stride, padding: as in the forward pass.

    Returns:
        A new array [B, H, W, C].

    Raises:
        ValueError: the shapes do not fit.
    """
    windows = _pooling_windows(kernel, stride, padding)
    check_shape("dy", dy, (input_shape[0], *windows.counts(input_shape[1], input_shape[2]), input_shape[3]))
    share = dy * dy.dtype.type(1 / math.prod(kernel))
    padded = windows.pad(array_module(dy).zeros(input_shape, dy.dtype))
    for _, _, pixels in windows.taps(padded):
        pixels += share
    return windows.unpad(padded)


def global_avg_pool(x: Array) -> Array:
    """Return the mean over all pixels. Local.

    Args:
        x: [B, H, W, C]; B may be 0.

    Returns:
        A new array [B, C].

    Raises:
        ValueError: x has other dims.
    """
    check_shape("x", x, (None, None, None, None))
    y: Array = x.mean(axis=(1, 2))
    return y


def global_avg_pool_backward(dy: Array, input_shape: tuple[int, ...]) -> Array:
    """Return dx: each value of dy in equal parts to all pixels. Local.

    Args:
        dy: [B, C].
        input_shape: shape of x, [B, H, W, C].

    Returns:
        A new array [B, H, W, C].

    Raises:
        ValueError: the shapes do not fit.
    """
    batch_size, height, width, channels = input_shape
    check_shape("dy", dy, (batch_size, channels))
    dx: Array = array_module(dy).empty(input_shape, dy.dtype)
    dx[...] = (dy * dy.dtype.type(1 / (height * width)))[:, None, None]
    return dx


def _pooling_windows(kernel: Pair, stride: Pair, padding: Pair) -> Windows:
    """Return the windows, each of which holds a pixel."""
    if any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        raise ValueError(f"padding: expected at most half of the kernel {kernel}, received {padding}")
    return Windows(kernel, stride, padding)


def _tap_places(x: Array, windows: Windows) -> list[Array]:
    """Return int32 [OH, OW, 1] for each tap: row * W + column of the pixel under it, -1 in the padding."""
    _, height, width, _ = x.shape
    places = array_module(x).arange(height * width, dtype=np.int32).reshape(1, height, width, 1)
    return [pixels[0] for _, _, pixels in windows.taps(windows.pad(places, -1))]
