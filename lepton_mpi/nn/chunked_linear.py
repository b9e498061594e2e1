"""Linear maps whose outputs or inputs are divided into chunks, see `Place.slices`: one product a chunk.

Dims: R rows, I inputs, O outputs, of this shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lepton_mpi.ops.array_module import array_module
from lepton_mpi.ops.linear import linear, linear_backward_input, linear_backward_weight
from lepton_mpi.ops.product import Precision

Chunks = Sequence[slice]
WHOLE: Chunks = (slice(None),)


def _columns(x: Any, chunk: slice, other: Any) -> Any:
    """Return a chunk of the columns of a matrix, to be multiplied with another one.

    Products with vectors may go another way, with other bits, where an operand is not contiguous as the only chunk of a shard is.
    """
    part = x[:, chunk]
    return array_module(x).ascontiguousarray(part) if 1 in part.shape or 1 in other.shape else part


def linear_by_columns(x: Any, W: Any, chunks: Chunks, b: Any = None, *, precision: Precision) -> Any:
    """Return x W^T + b, chunk of outputs by chunk. Local.

    Args:
        x: [R, I].
        W: [O, I].
        chunks: of O.
        b: [O], or None.
        precision: see `product`.

    Returns:
        A new array [R, O].
    """
    if len(chunks) == 1:
        return linear(x, W, b, precision=precision)
    y = array_module(x).empty((len(x), len(W)), x.dtype)
    for c in chunks:
        linear(x, W[c], precision=precision, out=y[:, c])
    if b is not None:
        y += b
    return y


def columns_backward_input(dy: Any, W: Any, chunks: Chunks, *, precision: Precision) -> list[Any]:
    """Return the parts of dx = dy W that the chunks of outputs make, new arrays [R, I]. Local."""
    return [linear_backward_input(_columns(dy, c, W), W[c], precision=precision) for c in chunks]


def columns_backward_weight(dy: Any, x: Any, dW: Any, db: Any, chunks: Chunks, *, precision: Precision) -> None:
    """Add dy^T x to dW [O, I] and the column sums of dy to db [O] or None, chunk of outputs by chunk. Local."""
    for c in chunks:
        linear_backward_weight(_columns(dy, c, x), x, dW[c], None if db is None else db[c], precision=precision)


def linear_by_rows(x: Any, W: Any, chunks: Chunks, *, precision: Precision) -> list[Any]:
    """Return the parts of x W^T that the chunks of inputs make, new arrays [R, O]. Local.

    Args:
        x: [R, I].
        W: [O, I].
        chunks: of I.
        precision: see `product`.
    """
    return [linear(_columns(x, c, W), _columns(W, c, x), precision=precision) for c in chunks]


def rows_backward_input(dy: Any, W: Any, chunks: Chunks, *, precision: Precision) -> Any:
    """Return dx = dy W, a new array [R, I], chunk of inputs by chunk. Local."""
    if len(chunks) == 1:
        return linear_backward_input(dy, W, precision=precision)
    dx = array_module(dy).empty((len(dy), W.shape[1]), dy.dtype)
    for c in chunks:
        linear_backward_input(dy, _columns(W, c, dy), precision=precision, out=dx[:, c])
    return dx


def rows_backward_weight(dy: Any, x: Any, dW: Any, db: Any, chunks: Chunks, *, precision: Precision) -> None:
    """Add dy^T x to dW [O, I], chunk of inputs by chunk, and the column sums of dy to db [O] or None. Local."""
    for c in chunks:
        linear_backward_weight(dy, _columns(x, c, dy), dW[:, c], None, precision=precision)
    if db is not None:
        db += dy.sum(axis=0)
