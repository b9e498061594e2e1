"""Two-dimensional convolution (cross-correlation, as in PyTorch) by matrix products on columns of windows.

After Chellapilla et al. 2006, "High performance convolutional neural networks for document processing"; the columns are
made, multiplied and dropped in pieces, so that their memory is bounded.

Dims: B images, H height, W width, I input channels, O output channels, G groups, OH and OW size of the output,
P windows of a piece, K taps times input channels of a group.
"""

from __future__ import annotations

from collections.abc import Iterator

from lepton_mpi.ops.array_module import Array, array_module
from lepton_mpi.ops.checks import check_shape
from lepton_mpi.ops.columns import Piece, col2im_add, im2col, pieces
from lepton_mpi.ops.depthwise_conv2d import (
    depthwise_conv2d,
    depthwise_conv2d_backward_input,
    depthwise_conv2d_backward_weight,
)
from lepton_mpi.ops.product import Precision, product
from lepton_mpi.ops.windows import Pair, Windows


def conv2d(
    x: Array,
    W: Array,
    b: Array | None = None,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    precision: Precision = "fp32",
) -> Array:
    """Return the convolution of images with W, plus b. Local.

    Args:
        x: [B, H, W, I], channels last; B may be 0.
        W: [O, I / groups, kernel height, kernel width].
        b: [O], or None.
        stride, padding, dilation: (height, width); the padding is of zeros.
        groups: output channels of group g see the input channels of group g only.
        precision: see `product`.

    Returns:
        A new array [B, OH, OW, O].

    Raises:
        ValueError: the shapes do not fit.
    """
    windows = _check(x.shape, W, stride, padding, dilation, groups)
    y: Array = array_module(x).empty((x.shape[0], *windows.counts(x.shape[1], x.shape[2]), W.shape[0]), x.dtype)
    if _is_depthwise(W, groups):
        depthwise_conv2d(x, W, y, windows, precision)
    elif _is_pointwise(windows, groups):
        y = product(x.reshape(-1, x.shape[3]), W[:, :, 0, 0].T, precision).reshape(y.shape)
    else:
        x = array_module(x).ascontiguousarray(x)
        W_OK = _weight_rows(W)
        for piece, inputs, outputs in _parts(x, W, windows, groups):
            columns_PK = im2col(x, windows, piece, inputs)
            part = _part(y, piece, outputs)
            part[...] = product(columns_PK, W_OK[slice(*outputs)].T, precision).reshape(part.shape)
    if b is not None:
        check_shape("b", b, (W.shape[0],))
        y += b
    return y


def conv2d_backward_input(
    dy: Array,
    W: Array,
    input_shape: tuple[int, ...],
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    precision: Precision = "fp32",
) -> Array:
    """Return dx, the adjoint of `conv2d` on dy. Local.

    Args:
        dy: [B, OH, OW, O].
        W: [O, I / groups, kernel height, kernel width].
        input_shape: shape of x, [B, H, W, I].
        stride, padding, dilation, groups, precision: as in the forward pass.

    Returns:
        A new array [B, H, W, I].

    Raises:
        ValueError: the shapes do not fit.
    """
    windows = _check(input_shape, W, stride, padding, dilation, groups)
    check_shape("dy", dy, (input_shape[0], *windows.counts(input_shape[1], input_shape[2]), W.shape[0]))
    if _is_pointwise(windows, groups) and not _is_depthwise(W, groups):
        dx: Array = product(dy.reshape(-1, W.shape[0]), W[:, :, 0, 0], precision).reshape(input_shape)
        return dx
    dx = array_module(dy).zeros(input_shape, dy.dtype)
    if _is_depthwise(W, groups):
        depthwise_conv2d_backward_input(dy, W, dx, windows, precision)
        return dx
    W_OK = _weight_rows(W)
    for piece, inputs, outputs in _parts(dx, W, windows, groups):
        dy_PO = _part(dy, piece, outputs).reshape(-1, outputs[1] - outputs[0])
        col2im_add(product(dy_PO, W_OK[slice(*outputs)], precision), dx, windows, piece, inputs)
    return dx


def conv2d_backward_weight(
    dy: Array,
    x: Array,
    dW: Array,
    db: Array | None = None,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    precision: Precision = "fp32",
) -> None:
    """Add the gradients of the weight and of the bias to dW and db. Local.

    Args:
        dy: [B, OH, OW, O].
        x: [B, H, W, I], the input of the forward pass.
        dW: [O, I / groups, kernel height, kernel width]; the caller's, added to.
        db: [O], or None; the caller's, added to.
        stride, padding, dilation, groups, precision: as in the forward pass.

    Raises:
        ValueError: the shapes do not fit.
    """
    windows = _check(x.shape, dW, stride, padding, dilation, groups)
    num_outputs = dW.shape[0]
    check_shape("dy", dy, (x.shape[0], *windows.counts(x.shape[1], x.shape[2]), num_outputs))
    if db is not None:
        check_shape("db", db, (num_outputs,))
        db += dy.sum(axis=(1, 2)).sum(axis=0)  # in two steps: shorter sums round less
    if _is_depthwise(dW, groups):
        depthwise_conv2d_backward_weight(dy, x, dW, windows, precision)
        return
    if _is_pointwise(windows, groups):
        dW[:, :, 0, 0] += product(dy.reshape(-1, num_outputs).T, x.reshape(-1, x.shape[3]), precision)
        return
    x = array_module(x).ascontiguousarray(x)
    dW_OK = array_module(dW).zeros((num_outputs, dW[0].size), dW.dtype)
    for piece, inputs, outputs in _parts(x, dW, windows, groups):
        dy_PO = _part(dy, piece, outputs).reshape(-1, outputs[1] - outputs[0])
        dW_OK[slice(*outputs)] += product(dy_PO.T, im2col(x, windows, piece, inputs), precision)
    dW += dW_OK.reshape(num_outputs, *dW.shape[2:], dW.shape[1]).transpose(0, 3, 1, 2)


def _check(shape: tuple[int, ...], W: Array, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> Windows:
    """Return the windows of a convolution whose shapes fit."""
    check_shape("W", W, (None, None, None, None))
    if groups < 1 or W.shape[0] % groups:
        raise ValueError(f"groups: expected a divisor of {W.shape[0]} output channels, received {groups}")
    if len(shape) != 4 or shape[3] != W.shape[1] * groups:
        raise ValueError(f"x: expected shape (any, any, any, {W.shape[1] * groups}), received {tuple(shape)}")
    windows = Windows((W.shape[2], W.shape[3]), stride, padding, dilation)
    windows.counts(shape[1], shape[2])
    return windows


def _is_depthwise(W: Array, groups: int) -> bool:
    """Whether every channel has a filter of its own."""
    return groups > 1 and W.shape[0] == groups and W.shape[1] == 1


def _is_pointwise(windows: Windows, groups: int) -> bool:
    """Whether the windows are the pixels, so that the image is its own matrix of columns."""
    return groups == 1 and windows.kernel == windows.stride == (1, 1) and windows.padding == (0, 0)


def _weight_rows(W: Array) -> Array:
    """Return W as contiguous [O, K], taps row by row and channels within a tap, as the columns are."""
    rows: Array = array_module(W).ascontiguousarray(W.transpose(0, 2, 3, 1))
    return rows.reshape(W.shape[0], -1)


def _parts(x: Array, W: Array, windows: Windows, groups: int) -> Iterator[tuple[Piece, Pair, Pair]]:
    """Yield (piece, input channels, output channels) of all pieces and groups."""
    depth, num_outputs = W.shape[1], W.shape[0] // groups
    for piece in pieces(x, windows, depth):
        for g in range(groups):
            yield piece, (g * depth, (g + 1) * depth), (g * num_outputs, (g + 1) * num_outputs)


def _part(y: Array, piece: Piece, channels: Pair) -> Array:
    """Return the part of y [B, OH, OW, O] that a piece of the windows and some channels make, a view."""
    images, rows = piece
    return y[slice(*images), slice(*rows), :, slice(*channels)]
