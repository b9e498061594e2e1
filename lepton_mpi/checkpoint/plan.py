"""What all ranks are about to write: the tensors, who writes which extent, and whether they cover everything once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.checkpoint.failure import failing_together
from lepton_mpi.checkpoint.layout import Extent, TensorInfo, TensorSlice, describe_block, file_runs
from lepton_mpi.comm.contract import collective
from lepton_mpi.errors import CheckpointError
from lepton_mpi.runtime.mpi import MPI

# Runs of so many bytes a file system takes as well one by one as joined by MPI-IO, which sends them between ranks first.
LARGE_NBYTES = 2**20


@dataclass(frozen=True, eq=False)
class WritePlan:
    """The joint plan of all ranks.

    Attributes:
        tensors: every logical tensor, sorted by path; the same on all ranks.
        num_rounds: collective writes of each tensor, which is the largest number of extents a rank has of it; 0 where every
            extent is so large and contiguous that ranks need not join theirs.
        extents: what this rank writes, as the table has it.
        table: every rank's extents, for `/integrity/extents`, their digests still 0; on rank 0 only, empty elsewhere.
    """

    tensors: dict[str, TensorInfo]
    num_rounds: dict[str, int]
    extents: list[Extent]
    table: NDArray[np.void]


@collective("comm")
def make_plan(comm: MPI.Intracomm, slices: Sequence[TensorSlice]) -> WritePlan:
    """Gather all ranks' extents on rank 0, and check that they cover every tensor once.

    Collective over comm.

    Args:
        comm: communicator whose ranks hold the tensors.
        slices: what this rank writes.

    Raises:
        CheckpointError: a slice is impossible, ranks disagree about a tensor, elements are missing or come twice.
    """
    declared: dict[str, TensorInfo] = {}
    extents: list[Extent] = []
    with failing_together(comm, "cut the slices"):
        for tensor_slice in slices:
            tensor_slice.check()
            _declare(declared, tensor_slice.path, TensorInfo(tensor_slice.global_shape, tensor_slice.array.dtype), comm.rank)
            extents.extend(tensor_slice.extents())
        extents.sort(key=lambda extent: (extent.path, extent.starts, extent.array.shape))
    gathered = comm.gather((declared, [(e.path, e.starts, e.array.shape) for e in extents]), root=0)
    tensors: dict[str, TensorInfo] = {}
    num_rounds: dict[str, int] = {}
    table = np.zeros(0, table_dtype({}))
    with failing_together(comm, "join the ranks' slices"):
        if gathered is not None:
            tensors = _join([theirs for theirs, _ in gathered])
            table = _tabulate(tensors, [rows for _, rows in gathered])
            check_coverage(tensors, table)
            num_rounds = count_rounds(tensors, [rows for _, rows in gathered])
    tensors, num_rounds = comm.bcast((tensors, num_rounds), root=0)
    return WritePlan(tensors, num_rounds, extents, table)


def table_dtype(tensors: Mapping[str, TensorInfo]) -> np.dtype[np.void]:
    """Return the record of `/integrity/extents`, as wide as the tensor with the most dims. Local."""
    ndim = max((len(info.shape) for info in tensors.values()), default=0)
    width = (max(1, ndim),)
    return np.dtype([("tensor", "<u4"), ("writer", "<u4"), ("starts", "<i8", width), ("shape", "<i8", width), ("crc32", "<u4")])


def _declare(tensors: dict[str, TensorInfo], path: str, info: TensorInfo, rank: int) -> None:
    known = tensors.setdefault(path, info)
    if known != info:
        raise CheckpointError(
            f"tensor {path}: rank {rank} has global shape {info.shape} of {info.dtype}, "
            f"but shape {known.shape} of {known.dtype} was declared before; all its slices must agree"
        )


def _join(declared: Sequence[Mapping[str, TensorInfo]]) -> dict[str, TensorInfo]:
    """Merge the tensors that the ranks declared, sorted by path."""
    tensors: dict[str, TensorInfo] = {}
    for rank, theirs in enumerate(declared):
        for path, info in theirs.items():
            _declare(tensors, path, info, rank)
    for path in tensors:
        for index, character in enumerate(path):
            if character == "/" and path[:index] in tensors:
                raise CheckpointError(f"tensor {path}: {path[:index]} is a tensor too and cannot hold others; rename one of them")
    return dict(sorted(tensors.items()))


def _tabulate(tensors: Mapping[str, TensorInfo], rows_of_ranks: Sequence[Sequence[tuple[Any, ...]]]) -> NDArray[np.void]:
    """Return all ranks' extents as one table, sorted by tensor, then by position."""
    index = {path: i for i, path in enumerate(tensors)}
    table = np.zeros(sum(map(len, rows_of_ranks)), table_dtype(tensors))
    flat = sorted(
        (index[path], tuple(starts), tuple(shape), writer)
        for writer, rows in enumerate(rows_of_ranks)
        for path, starts, shape in rows
    )
    for record, (tensor, starts, shape, writer) in zip(table, flat, strict=True):
        record["tensor"], record["writer"] = tensor, writer
        record["starts"][: len(starts)], record["shape"][: len(shape)] = starts, shape
    return table


def count_rounds(tensors: Mapping[str, TensorInfo], rows_of_ranks: Sequence[Sequence[tuple[Any, ...]]]) -> dict[str, int]:
    """Return how many collective writes each tensor takes, see `WritePlan`. Local.

    Args:
        tensors: every tensor.
        rows_of_ranks: path, starts and shape of each rank's extents.
    """
    num_rounds, shortest = dict.fromkeys(tensors, 0), dict.fromkeys(tensors, LARGE_NBYTES)
    for rows in rows_of_ranks:
        for path, count in Counter(row[0] for row in rows).items():
            num_rounds[path] = max(num_rounds[path], count)
        for path, starts, shape in rows:
            shortest[path] = min(shortest[path], file_runs(starts, shape, tensors[path])[1])
    return {path: 0 if shortest[path] >= LARGE_NBYTES else count for path, count in num_rounds.items()}


def check_coverage(tensors: Mapping[str, TensorInfo], table: NDArray[np.void]) -> None:
    """Raise unless the extents of each tensor hold each of its elements exactly once. Local.

    Args:
        tensors: every logical tensor, sorted by path.
        table: the extents of all of them, sorted by tensor.

    Raises:
        CheckpointError: elements are missing or come twice.
    """
    bounds = np.searchsorted(table["tensor"], np.arange(len(tensors) + 1))
    for i, (path, info) in enumerate(tensors.items()):
        rows = table[bounds[i] : bounds[i + 1]]
        ndim = len(info.shape)
        starts, shapes = rows["starts"][:, :ndim], rows["shape"][:, :ndim]
        _check_overlap(path, starts, starts + shapes, rows["writer"])
        covered, expected = int(shapes.prod(axis=1).sum()), math.prod(info.shape)
        if covered != expected:
            raise CheckpointError(
                f"tensor {path}: the ranks' slices hold {covered} of its {expected} elements (shape {info.shape}); "
                "some rank passed too few slices"
            )


def _check_overlap(path: str, starts: NDArray[np.int64], stops: NDArray[np.int64], writers: NDArray[np.uint32]) -> None:
    """Raise if two blocks share an element. The sweep runs along the dim that tells the most blocks apart."""
    ndim = starts.shape[1]
    sweep = max(range(ndim), key=lambda dim: len(np.unique(starts[:, dim])), default=-1)
    order = np.argsort(starts[:, sweep], kind="stable") if ndim else np.arange(len(starts))
    starts, stops, writers = starts[order], stops[order], writers[order]
    reach = np.searchsorted(starts[:, sweep], stops[:, sweep]) if ndim else np.full(len(starts), len(starts))
    for i in np.flatnonzero(reach > np.arange(len(starts)) + 1):
        rest = slice(i + 1, reach[i])
        clash = np.flatnonzero(((starts[rest] < stops[i]) & (starts[i] < stops[rest])).all(axis=1))
        if clash.size:
            j = i + 1 + clash[0]
            first, second = (describe_block(tuple(starts[k]), tuple(stops[k] - starts[k])) for k in (i, j))
            raise CheckpointError(
                f"tensor {path}: rank {writers[i]}'s block {first} and rank {writers[j]}'s {second} overlap; "
                "each element must have one writer"
            )
