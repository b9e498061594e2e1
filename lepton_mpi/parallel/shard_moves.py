"""Movements of activations between the shards of a layer, each with its adjoint.

A replicated array is one vector that every shard holds; a divided one is a vector of which every
shard holds a block of columns; a partial one is a vector that is the sum of what the shards hold.
All of them are collective over grid.shard.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.reduction import gather_features, sum_in_rank_order
from lepton_mpi.nn.move import Move, Stay
from lepton_mpi.ops.array_module import array_module
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.runtime.ranges import split_range


class ReplicateToShards(Move):
    """Replicated to one copy a shard: nothing to do forward; the copies' gradients add up."""

    def __init__(self, shard: MPI.Intracomm) -> None:
        """Move over the ranks of grid.shard."""
        self._shard = shard

    def forward(self, x: Any) -> Any:
        """Return x. Local."""
        return x

    @collective("grid.shard")
    def adjoint(self, dy: Any) -> Any:
        """Return the sum over the shards. Collective over grid.shard."""
        return _on_host(dy, lambda host: sum_in_rank_order(self._shard, host))


class SumOverShards(Move):
    """Partial to replicated: the adjoint of `ReplicateToShards`."""

    def __init__(self, shard: MPI.Intracomm) -> None:
        """Move over the ranks of grid.shard."""
        self._shard = shard

    @collective("grid.shard")
    def forward(self, x: Any) -> Any:
        """Return the sum over the shards. Collective over grid.shard."""
        return _on_host(x, lambda host: sum_in_rank_order(self._shard, host))

    def adjoint(self, dy: Any) -> Any:
        """Return dy. Local."""
        return dy


class GatherFromShards(Move):
    """Divided columns to a replicated whole. The whole's gradient is the same on all shards, so each keeps its columns."""

    def __init__(self, shard: MPI.Intracomm, num_features: int) -> None:
        """Gather `num_features` columns divided over the ranks of grid.shard."""
        self._shard = shard
        ranges = [split_range(num_features, shard.Get_size(), r) for r in range(shard.Get_size())]
        self._widths = [stop - start for start, stop in ranges]
        self._own = slice(*ranges[shard.Get_rank()])

    @collective("grid.shard")
    def forward(self, x: Any) -> Any:
        """Return all columns [B, F] for the own ones. Collective over grid.shard."""
        return _on_host(x, lambda host: gather_features(self._shard, host, self._widths))

    def adjoint(self, dy: Any) -> Any:
        """Return the own columns. Local."""
        return array_module(dy).ascontiguousarray(dy[:, self._own])


def enter_move(shard: MPI.Intracomm, split: str) -> Move:
    """Return how the input of a layer reaches the shards. Local."""
    return ReplicateToShards(shard) if split == "column" and shard.Get_size() > 1 else Stay()


def reduce_move(shard: MPI.Intracomm, split: str) -> Move:
    """Return how the products of a layer come together. Local."""
    return SumOverShards(shard) if split == "row" and shard.Get_size() > 1 else Stay()


def leave_move(shard: MPI.Intracomm, gather: bool, num_features: int) -> Move:
    """Return how the outputs of a layer come together. Local."""
    return GatherFromShards(shard, num_features) if gather and shard.Get_size() > 1 else Stay()


def _on_host(x: Any, move: Any) -> Any:
    """Apply a movement of NumPy arrays to an array of any device.

    Device arrays travel through host memory, which works with every MPI.
    """
    xp = array_module(x)
    if xp is np:
        return move(np.ascontiguousarray(x))
    return xp.asarray(move(xp.asnumpy(x)))
