"""Rows of a table by number. Dims: V rows of the table that are here, C features."""

from __future__ import annotations

import numpy as np

from lepton_mpi import native
from lepton_mpi.ops.array_module import Array, array_module
from lepton_mpi.ops.checks import check_shape
from lepton_mpi.ops.native_path import runs_native


def embedding(ids: Array, W: Array, first: int = 0) -> Array:
    """Return W[ids - first], and zeros for ids outside of [first, first + V). Local.

    Args:
        ids: int64, any shape.
        W: [V, C].
        first: number of the first row that is here; the parts of all shards add up to the whole result.

    Returns:
        A new array [*ids.shape, C].

    Raises:
        ValueError: the ids are no int64, or W has other dims.
    """
    _check(ids, W)
    xp = array_module(W)
    inside = (ids >= first) & (ids < first + W.shape[0])
    if inside.all():
        y: Array = xp.take(W, ids - first, axis=0)
        return y
    y = xp.zeros((*ids.shape, W.shape[1]), W.dtype)
    y[inside] = W[ids[inside] - first]
    return y


def embedding_backward(dy: Array, ids: Array, dW: Array, first: int = 0) -> None:
    """Add the rows of dy to dW[ids - first], in order; ids outside of [first, first + V) are passed over. Local.

    On a GPU the order of additions is not fixed.

    Args:
        dy: gradient of the output, [*ids.shape, C].
        ids: int64, as in the forward pass.
        dW: [V, C]; the caller's, added to.
        first: as in the forward pass.

    Raises:
        ValueError: the shapes do not fit, or the ids are no int64.
    """
    _check(ids, dW)
    check_shape("dy", dy, (*ids.shape, dW.shape[1]))
    if runs_native(dy, dW) and dW.flags.c_contiguous:
        ids, dy = np.ascontiguousarray(ids), np.ascontiguousarray(dy)
        native.embedding_add(dy.reshape(-1), ids.reshape(-1), first, dW.reshape(-1), dW.shape[1])
        return
    embedding_backward_reference(dy, ids, dW, first)


def embedding_backward_reference(dy: Array, ids: Array, dW: Array, first: int = 0) -> None:
    """Do what `embedding_backward` does, in NumPy or CuPy. Local."""
    inside = (ids >= first) & (ids < first + dW.shape[0])
    array_module(dW).add.at(dW, ids[inside] - first, dy[inside])


def _check(ids: Array, W: Array) -> None:
    """Require int64 and two dims."""
    check_shape("W", W, (None, None))
    if ids.dtype != np.int64:
        raise ValueError(f"ids: expected int64, received {ids.dtype}")
