"""Sums over a communicator that end with the same bits on every rank.

MPI does not promise that all ranks of an all-reduce receive equal bits, and replicas that
differ by a bit drift apart. These sums are added in rank order by one rank an element.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.waiting import wait
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.runtime.ranges import split_range
from lepton_mpi.runtime.tree_order import add_leaves, add_nodes, whole_nodes

# Below this many bytes one message round beats two: everybody gathers everything. About the size
# at which MPI libraries, too, leave their latency-bound algorithms.
_GATHER_NBYTES = 32 * 1024


@collective("comm", equal="x")
def sum_in_rank_order(comm: MPI.Intracomm, x: NDArray[Any]) -> NDArray[Any]:
    """Return the sum of `x` over all ranks, added in rank order, with equal bits on every rank.

    Collective over comm.

    Args:
        comm: the ranks that add up.
        x: C-contiguous array of one shape and dtype on all ranks; not changed.

    Returns:
        A new array of that shape (`x` itself where comm has one rank).
    """
    size = comm.Get_size()
    if size == 1 or x.size == 0:
        return x
    if x.nbytes * size <= _GATHER_NBYTES or x.size < size:
        parts = np.empty((size, *x.shape), x.dtype)
        wait(comm.Iallgather(x, parts), "the parts of a sum")
        return _add(parts)
    bounds = [x.size * r // size for r in range(size + 1)]
    counts, starts = np.diff(bounds).tolist(), bounds[:-1]
    own = counts[comm.Get_rank()]
    parts = np.empty((size, own), x.dtype)
    pieces = [parts, [own] * size, [own * r for r in range(size)], _datatype(x)]
    wait(comm.Ialltoallv([x, counts, starts, _datatype(x)], pieces), "the parts of a sum")
    total = np.empty(x.shape, x.dtype)
    sums = _add(parts)
    wait(comm.Iallgatherv(sums, [total, counts, starts, _datatype(x)]), "the sums")
    return total


@collective("comm")
def sum_in_tree_order(comm: MPI.Intracomm, leaves: Sequence[NDArray[Any]], num_leaves: int) -> NDArray[Any]:
    """Return the sum of the leaves of all ranks in the order of one tree, with equal bits on every rank.

    Collective over comm. The sum has the same bits however the leaves are spread, see `runtime/tree_order.py`.

    Args:
        comm: the ranks that add up; rank r has the leaves `split_range(num_leaves, size, r)`.
        leaves: arrays of one shape and dtype on all ranks; sums may be left in them.
        num_leaves: leaves of all ranks.

    Returns:
        An array of that shape; the only leaf itself where there is one.
    """
    size, rank = comm.Get_size(), comm.Get_rank()
    spread = [split_range(num_leaves, size, r) for r in range(size)]
    values = add_leaves(leaves, spread[rank][0], num_leaves)
    if size == 1:
        return np.asarray(values[0])
    shape, datatype = leaves[0].shape, _datatype(leaves[0])
    counts = [len(whole_nodes(first, last, num_leaves)) for first, last in spread]
    own = np.stack(values).reshape(len(values), -1) if len(values) > 1 else np.ascontiguousarray(values[0]).reshape(1, -1)
    length = own.shape[1]
    if length == 0:
        return np.asarray(leaves[0])
    if own.nbytes * size <= _GATHER_NBYTES or length < size:
        parts = np.empty((sum(counts), length), own.dtype)
        wait(comm.Iallgatherv(own, [parts, [n * length for n in counts], datatype]), "the parts of a sum")
        return np.asarray(add_nodes(list(parts), spread, num_leaves)).reshape(shape)
    bounds = [length * r // size for r in range(size + 1)]
    widths = np.diff(bounds).tolist()
    outgoing = own if len(own) == 1 else np.concatenate([own[:, bounds[r] : bounds[r + 1]].ravel() for r in range(size)])
    sent = [len(own) * width for width in widths]
    received = [n * widths[rank] for n in counts]
    parts = np.empty((sum(counts), widths[rank]), own.dtype)
    wait(comm.Ialltoallv([outgoing, sent, datatype], [parts, received, datatype]), "the parts of a sum")
    total = np.empty(shape, own.dtype)
    sums = np.ascontiguousarray(add_nodes(list(parts), spread, num_leaves))
    wait(comm.Iallgatherv(sums, [total, widths, datatype]), "the sums")
    return total


@collective("comm")
def sum_and_scatter_in_tree_order(
    comm: MPI.Intracomm, leaves: Sequence[NDArray[Any]], num_leaves: int, widths: Sequence[int]
) -> NDArray[Any]:
    """Return this rank's columns of the sum of the leaves of all ranks, with the bits of `sum_in_tree_order`.

    Collective over comm.

    Args:
        comm: the ranks that add up; rank r has the leaves `split_range(num_leaves, size, r)`, at least one.
        leaves: arrays [B, F] of one dtype on all ranks; sums may be left in them.
        num_leaves: leaves of all ranks.
        widths: the number of columns that each rank gets, F together.

    Returns:
        Array [B, widths[rank]]; the only leaf itself where there is one.
    """
    size, rank = comm.Get_size(), comm.Get_rank()
    spread = [split_range(num_leaves, size, r) for r in range(size)]
    values = add_leaves(leaves, spread[rank][0], num_leaves)
    if size == 1:
        return np.asarray(values[0])
    rows, datatype, edges = len(leaves[0]), _datatype(leaves[0]), np.cumsum([0, *widths]).tolist()
    counts = [len(whole_nodes(first, last, num_leaves)) for first, last in spread]
    outgoing = np.concatenate([value[:, edges[r] : edges[r + 1]].ravel() for r in range(size) for value in values])
    sent = [len(values) * rows * width for width in widths]
    received = [n * rows * widths[rank] for n in counts]
    parts = np.empty((sum(counts), rows * widths[rank]), outgoing.dtype)
    wait(comm.Ialltoallv([outgoing, sent, datatype], [parts, received, datatype]), "the parts of a sum")
    return np.asarray(add_nodes(list(parts), spread, num_leaves)).reshape(rows, widths[rank])


@collective("comm")
def gather_features(comm: MPI.Intracomm, x_BF: NDArray[Any], widths: list[int]) -> NDArray[Any]:
    """Return the blocks of columns of all ranks side by side.

    Collective over comm. The adjoint is `x_BF[:, own columns]`.

    Args:
        comm: ranks that hold a block of columns each.
        x_BF: this rank's columns, shape [B, widths[rank]].
        widths: the number of columns of each rank.

    Returns:
        Array [B, sum(widths)], equal on all ranks.
    """
    if comm.Get_size() == 1:
        return x_BF
    batch = x_BF.shape[0]
    counts = [batch * width for width in widths]
    flat = np.empty(sum(counts), x_BF.dtype)
    own = np.ascontiguousarray(x_BF)
    wait(comm.Iallgatherv(own, [flat, counts, _datatype(x_BF)]), "the columns")
    ends = np.cumsum(counts)[:-1]
    blocks = [part.reshape(batch, width) for part, width in zip(np.split(flat, ends), widths, strict=True)]
    return np.concatenate(blocks, axis=1)


def _add(parts: NDArray[Any]) -> NDArray[Any]:
    total = parts[0] + parts[1]
    for part in parts[2:]:
        total += part
    return np.asarray(total)


def _datatype(x: NDArray[Any]) -> MPI.Datatype:
    return MPI._typedict[x.dtype.char]
