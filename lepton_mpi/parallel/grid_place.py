"""A place of the grid as layers see it: the shards and the data axis through MPI."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np

from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.grid import ProcessGrid
from lepton_mpi.comm.waiting import wait
from lepton_mpi.nn.move import AddParts, Move, Replicate, Stay
from lepton_mpi.nn.place import Place, TakeGradients
from lepton_mpi.ops.array_module import array_module
from lepton_mpi.ops.product import Precision
from lepton_mpi.parallel.sequence_moves import GatherPositions, ScatterSum
from lepton_mpi.parallel.shard_moves import GatherFromShards, ReplicateToShards, SumOverShards
from lepton_mpi.runtime.ranges import split_range


@final
@dataclass(frozen=True, kw_only=True)
class GridPlace(Place):
    """The place of this rank.

    Attributes:
        grid: the process grid.
    """

    grid: ProcessGrid

    def replicate(self, length: int = 0, unit: int = 1) -> Move:
        """Return the move of a replicated array into a divided layer."""
        if self.shards == 1:
            return Replicate()
        chunks = self._num_chunks(length, unit)
        return GatherPositions(self.grid.shard, self.cut, chunks) if self.sequence else ReplicateToShards(self.grid.shard, chunks)

    def sum(self, length: int = 0, unit: int = 1) -> Move:
        """Return the move that makes partial arrays a replicated one."""
        if self.shards == 1:
            return AddParts()
        chunks = self._num_chunks(length, unit)
        return ScatterSum(self.grid.shard, self.cut, chunks) if self.sequence else SumOverShards(self.grid.shard, chunks)

    def gather(self, length: int, unit: int = 1) -> Move:
        """Return the move that makes a whole last dim."""
        return GatherFromShards(self.grid.shard, length, unit, self.chunks) if self.shards > 1 else Stay()

    def _num_chunks(self, length: int, unit: int) -> int:
        return self.cut.num_chunks(length, unit) if length else self.shards

    @collective("grid.data")
    def gather_over_data(self, x: Any, num_rows: int = 0) -> Any:
        """Return the rows of all ranks of the data axis, in rank order.

        Collective over grid.data.
        """
        comm = self.grid.data
        size = comm.Get_size()
        if size == 1:
            return x
        xp = array_module(x)
        own = np.ascontiguousarray(x if xp is np else xp.asnumpy(x))  # device arrays travel through host memory
        shares = [split_range(num_rows or size, size, r) for r in range(size)]
        rows = np.empty((num_rows or size, own.shape[1]), own.dtype)
        counts = [(stop - start) * own.shape[1] for start, stop in shares]
        wait(comm.Iallgatherv(own, (rows, counts)), "the batch statistics")
        return xp.asarray(rows)


def place_on(
    grid: ProcessGrid,
    seed: int,
    precision: Precision,
    chunks: int = 0,
    take: TakeGradients | None = None,
    sequence: bool = False,
) -> GridPlace:
    """Return the place of this rank on a grid. Local.

    Args:
        grid: the process grid.
        seed, precision, chunks, take, sequence: see `Place`.
    """
    return GridPlace(
        shards=grid.shape.shards,
        shard=grid.shard_index,
        is_first_data=grid.data_index == 0,
        seed=seed,
        precision=precision,
        chunks=chunks,
        take=take,
        sequence=sequence,
        grid=grid,
    )
