"""What all saves of a run have in common: which rank writes what, from where in its memory to where in the file."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.checkpoint.layout import EXTENT_TABLE, TensorSlice, describe_block, file_runs
from lepton_mpi.checkpoint.own_cores import map_on_own_cores
from lepton_mpi.checkpoint.plan import WritePlan
from lepton_mpi.checkpoint.write_process import Extent as Runs
from lepton_mpi.checkpoint.write_process import read_digest, write_fully
from lepton_mpi.comm.contract import collective
from lepton_mpi.errors import CheckpointError
from lepton_mpi.runtime.mpi import MPI

_ALIGNMENT = 64  # of the copies of slices; a cache line


class _Block(NamedTuple):
    """An extent without its array: which block of which tensor, and where it begins in the memory."""

    path: str
    starts: tuple[int, ...]
    shape: tuple[int, ...]
    memory: int


class SavePlan:
    """What all saves of a run have in common: who writes what, from where in its memory to where in the file.

    Args:
        slices: what this rank writes.
        shared: the joint plan of all ranks.
        comm: all ranks.
        idle_check: whether ranks that write nothing check others too; if not, they have nothing to do at all.

    Attributes:
        tensors: every logical tensor.
        table: all ranks' extents, on rank 0.
        offsets: where tensors and table lie in the file.
        nbytes: size of the memory.
        write: what this rank writes.
        check: what it reads back, which another rank wrote.
    """

    @collective("comm")
    def __init__(self, slices: Sequence[TensorSlice], shared: WritePlan, comm: MPI.Intracomm, idle_check: bool = False) -> None:
        """Lay out the memory, and find the ranks that this one checks and is checked by. Collective over comm."""
        self.tensors, self.table = shared.tensors, shared.table
        self.offsets: dict[str, int] = {}
        self.write: list[Runs] = []
        self.check: list[Runs] = []
        self._kinds = [_kind_of(tensor_slice) for tensor_slice in slices]
        self._bases, self.nbytes = [], 0
        blocks = []
        for tensor_slice in slices:
            self.nbytes += -self.nbytes % _ALIGNMENT
            self._bases.append(self.nbytes)
            for extent in tensor_slice.extents():  # one behind the other, as the slice has them
                blocks.append(_Block(extent.path, extent.starts, extent.array.shape, self.nbytes))
                self.nbytes += extent.array.nbytes
        self._mine = sorted(blocks)  # as the table has them
        writers = [rank for rank, writes in enumerate(comm.allgather(bool(blocks))) if writes or idle_check]
        self._neighbours: tuple[int, int] | None = None
        self._theirs: list[_Block] = []
        if comm.rank in writers:
            place = writers.index(comm.rank)
            self._neighbours = writers[place - 1], writers[(place + 1) % len(writers)]
            self._theirs = self._swap(self._mine, comm)

    def _swap(self, mine: list[Any], comm: MPI.Intracomm) -> list[Any]:
        """Hand a list to the rank that checks this one, and return that of the rank that this one checks."""
        if self._neighbours is None:
            return []
        before, after = self._neighbours
        theirs: list[Any] = comm.sendrecv(mine, dest=before, source=after)
        return theirs

    def require_same(self, slices: Sequence[TensorSlice]) -> None:
        """Refuse other slices than the first save had. Local."""
        if [_kind_of(tensor_slice) for tensor_slice in slices] != self._kinds:
            raise CheckpointError("the slices of a saver must be of the same blocks of the same tensors in every save")

    def copy(self, slices: Sequence[TensorSlice], memory: NDArray[np.uint8], dropped: threading.Event) -> bool:
        """Copy the state into the memory, and return whether all of it was; it stops where nobody wants it any more. Local."""
        for base, tensor_slice in zip(self._bases, slices, strict=True):
            if dropped.is_set():
                return False
            source = tensor_slice.array
            memory[base : base + source.nbytes].view(source.dtype).reshape(source.shape)[...] = source
        return True

    def place(self, offsets: dict[str, int]) -> None:
        """Note where tensors lie in the file. Local."""
        self.offsets = offsets
        self.write, self.check = ([self._runs(block) for block in blocks] for blocks in (self._mine, self._theirs))

    def _runs(self, block: _Block) -> Runs:
        first, run_nbytes, dims = file_runs(block.starts, block.shape, self.tensors[block.path])
        return block.memory, self.offsets[block.path] + first, run_nbytes, dims

    @collective("comm")
    def exchange(self, digests: list[int], comm: MPI.Intracomm) -> list[int]:
        """Complete the table, and return the digests of the rank that this one checks. Collective over comm."""
        gathered = comm.gather(digests, root=0)
        for rank, theirs in enumerate(gathered or ()):
            self.table["crc32"][self.table["writer"] == rank] = theirs
        return self._swap(digests, comm)

    def write_table(self, file: Path) -> None:
        """Put the table into the file and force both to the disk. Local, on rank 0."""
        descriptor = os.open(file, os.O_WRONLY)
        try:
            if len(self.table):
                write_fully(descriptor, memoryview(self.table.tobytes()), self.offsets[EXTENT_TABLE])
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def damage(self, index: int, found: int, expected: int) -> CheckpointError:
        """Return what there is to say of an extent of the rank that this one checks, if its digest is another. Local."""
        block = self._theirs[index]
        return CheckpointError(
            f"tensor {block.path}, extent {describe_block(block.starts, block.shape)}: expected CRC-32 {expected:#010x}, "
            f"found {found:#010x}; the file system lost data"
        )

    def read_back(self, file: Path, expected: Sequence[int]) -> None:
        """Compare what a file holds of the rank that this one checks with its digests. Local.

        Raises:
            CheckpointError: names the first extent that differs.
            OSError: the file cannot be read.
        """
        descriptor = os.open(file, os.O_RDONLY)
        try:
            digests = map_on_own_cores(lambda runs: read_digest(descriptor, runs), self.check)
        finally:
            os.close(descriptor)
        for index, (found, wanted) in enumerate(zip(digests, expected, strict=True)):
            if found != wanted:
                raise self.damage(index, found, wanted)


def _kind_of(tensor_slice: TensorSlice) -> tuple[Any, ...]:
    array = tensor_slice.array
    return tensor_slice.path, tensor_slice.global_shape, tensor_slice.starts, array.shape, array.dtype
