"""Convolution with one filter for each channel: sums over the taps, no matrix product (Chollet 2017, "Xception").

Dims: B images, H height, W width, C channels, OH and OW size of the output. Shapes are checked by `conv2d`, whose part this is.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lepton_mpi import native
from lepton_mpi.ops.array_module import Array, array_module
from lepton_mpi.ops.bf16 import round_to_bf16
from lepton_mpi.ops.product import Precision
from lepton_mpi.ops.windows import Pair, Windows

# Values of the input at a time: few enough to stay in a cache over all taps.
_BATCH_VALUES = 1 << 16


def depthwise_conv2d(x: Array, W: Array, y: Array, windows: Windows, precision: Precision) -> None:
    """Overwrite y with the convolution of x. Local.

    Args:
        x: [B, H, W, C].
        W: [C, 1, kernel height, kernel width].
        y: [B, OH, OW, C]; the caller's.
        windows: places of the windows.
        precision: "bf16" rounds x and W first.
    """
    x, W = _rounded(precision, x, W)
    if _is_native(x):
        native.depthwise_conv2d(np.ascontiguousarray(x), _tap_rows(W), y, *_geometry(windows))
        return
    for batch in _batches(x):
        out = y[batch]
        out[...] = 0
        for i, j, pixels in windows.taps(windows.pad(x[batch])):
            out += pixels * W[:, 0, i, j]


def depthwise_conv2d_backward_input(dy: Array, W: Array, dx: Array, windows: Windows, precision: Precision) -> None:
    """Add the gradient of the input to dx. Local.

    Args:
        dy: [B, OH, OW, C].
        W: as in the forward pass.
        dx: [B, H, W, C]; the caller's, added to.
        windows, precision: as in the forward pass.
    """
    dy, W = _rounded(precision, dy, W)
    if _is_native(dx):
        native.depthwise_backward_input_add(dx, _tap_rows(W), np.ascontiguousarray(dy), *_geometry(windows))
        return
    for batch in _batches(dx):
        padded = windows.pad(array_module(dx).zeros_like(dx[batch]))
        for i, j, pixels in windows.taps(padded):
            pixels += dy[batch] * W[:, 0, i, j]
        dx[batch] += windows.unpad(padded)


def depthwise_conv2d_backward_weight(dy: Array, x: Array, dW: Array, windows: Windows, precision: Precision) -> None:
    """Add the gradient of the weight to dW. Local.

    Args:
        dy: [B, OH, OW, C].
        x: the input of the forward pass.
        dW: [C, 1, kernel height, kernel width]; the caller's, added to.
        windows, precision: as in the forward pass.
    """
    dy, x = _rounded(precision, dy, x)
    if _is_native(x):
        dW_taps = np.zeros((windows.kernel[0] * windows.kernel[1], x.shape[3]), np.float32)
        native.depthwise_backward_weight_add(np.ascontiguousarray(x), dW_taps, np.ascontiguousarray(dy), *_geometry(windows))
        dW += dW_taps.T.reshape(dW.shape)
        return
    for batch in _batches(x):
        for i, j, pixels in windows.taps(windows.pad(x[batch])):
            dW[:, 0, i, j] += (pixels * dy[batch]).sum(axis=(1, 2)).sum(axis=0)


def _rounded(precision: Precision, a: Array, b: Array) -> tuple[Array, Array]:
    """Return two operands in the precision of products."""
    return (round_to_bf16(a), round_to_bf16(b)) if precision == "bf16" else (a, b)


def _is_native(x: Array) -> bool:
    return array_module(x) is np and x.dtype == np.float32


def _tap_rows(W: Array) -> Array:
    """Return W as contiguous [taps, C]."""
    return np.ascontiguousarray(W.reshape(W.shape[0], W.shape[2] * W.shape[3]).T)


def _geometry(windows: Windows) -> tuple[Pair, Pair, Pair, Pair]:
    return windows.kernel, windows.stride, windows.padding, windows.dilation


def _batches(x: Array) -> Iterator[slice]:
    """Yield ranges of images of about `_BATCH_VALUES` values each."""
    count = max(1, _BATCH_VALUES // max(1, x[:1].size))
    return (slice(first, first + count) for first in range(0, x.shape[0], count))
