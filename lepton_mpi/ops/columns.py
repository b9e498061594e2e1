"""Windows of images as the rows of a matrix, and the adjoint.

Dims: B images, H height, W width, C channels, OH and OW windows, P windows of a piece, K taps times channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np

from lepton_mpi import native
from lepton_mpi.ops.array_module import Array, array_module
from lepton_mpi.ops.windows import Pair, Windows

# Images (start, stop) and rows of windows (start, stop) of each.
Piece: TypeAlias = tuple[Pair, Pair]

# Bytes of the columns at a time. On a CPU they stay in its cache between being written and being multiplied; a GPU
# needs large products.
_PIECE_NBYTES = 1 << 20
_PIECE_NBYTES_GPU = 1 << 26


def pieces(x: Array, windows: Windows, depth: int) -> Iterator[Piece]:
    """Yield pieces that cover all windows in order, with columns of a bounded size. Local.

    Args:
        x: [B, H, W, C]; only its shape and dtype count.
        windows: the windows.
        depth: channels of the columns.
    """
    num_rows, num_columns = windows.counts(x.shape[1], x.shape[2])
    limit = _PIECE_NBYTES if array_module(x) is np else _PIECE_NBYTES_GPU
    row_nbytes = max(1, num_columns * windows.kernel[0] * windows.kernel[1] * depth * x.dtype.itemsize)
    fitting_rows = max(1, limit // row_nbytes)
    images = max(1, fitting_rows // num_rows)
    rows = num_rows if fitting_rows >= num_rows else fitting_rows
    for first in range(0, x.shape[0], images):
        for row in range(0, num_rows, rows):
            yield (first, min(first + images, x.shape[0])), (row, min(row + rows, num_rows))


def im2col(x: Array, windows: Windows, piece: Piece, channels: Pair) -> Array:
    """Return the pixels under the windows of a piece. Local.

    Args:
        x: [B, H, W, C], float32 and contiguous for the native path.
        windows: the windows.
        piece: images and rows of windows.
        channels: (start, stop).

    Returns:
        A new array [P, K], taps row by row and channels within a tap; zeros in the padding.
    """
    (first, last), (row, end) = piece
    depth = channels[1] - channels[0]
    num_columns = windows.counts(x.shape[1], x.shape[2])[1]
    shape = ((last - first) * (end - row) * num_columns, windows.kernel[0] * windows.kernel[1] * depth)
    if array_module(x) is not np or x.dtype != np.float32:
        return im2col_reference(x, windows, piece, channels)
    columns = np.empty(shape, np.float32)
    native.im2col(x, columns, *piece, channels, windows.kernel, windows.stride, windows.padding, windows.dilation)
    return columns


def col2im_add(columns: Array, dx: Array, windows: Windows, piece: Piece, channels: Pair) -> None:
    """Add columns [P, K], as `im2col` makes them, to the pixels they come from. Local.

    Args:
        columns: [P, K].
        dx: [B, H, W, C]; the caller's, added to.
        windows, piece, channels: as in `im2col`.
    """
    if array_module(dx) is not np or dx.dtype != np.float32:
        col2im_add_reference(columns, dx, windows, piece, channels)
        return
    native.col2im_add(columns, dx, *piece, channels, windows.kernel, windows.stride, windows.padding, windows.dilation)


def im2col_reference(x: Array, windows: Windows, piece: Piece, channels: Pair) -> Array:
    """Return what `im2col` returns, for any array module and dtype. Local."""
    (first, last), (row, end) = piece
    padded = windows.pad(x[first:last, :, :, slice(*channels)])
    taps = [pixels[:, row:end] for _, _, pixels in windows.taps(padded)]
    columns: Array = array_module(x).stack(taps, axis=3)
    return columns.reshape(math.prod(columns.shape[:3]), math.prod(columns.shape[3:]))


def col2im_add_reference(columns: Array, dx: Array, windows: Windows, piece: Piece, channels: Pair) -> None:
    """Do what `col2im_add` does, for any array module and dtype, tap by tap. Local."""
    (first, last), (row, end) = piece
    height, width = dx.shape[1:3]
    depth = channels[1] - channels[0]
    grown = (last - first, height + 2 * windows.padding[0], width + 2 * windows.padding[1], depth)
    padded = array_module(dx).zeros(grown, dx.dtype)
    parts = columns.reshape(last - first, end - row, windows.counts(height, width)[1], windows.kernel[0] * windows.kernel[1], depth)
    for i, j, pixels in windows.taps(padded):
        pixels[:, row:end] += parts[:, :, :, i * windows.kernel[1] + j]
    dx[first:last, :, :, slice(*channels)] += windows.unpad(padded)
