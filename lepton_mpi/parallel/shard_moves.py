"""Movements of activations between the shards of a layer, each with its adjoint.

A replicated array is one vector that every shard holds; a divided one is a vector of which every
shard holds a part of the last dim; a partial one is a vector that is the sum of what the shards hold.
All of them are collective over grid.shard.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.reduction import gather_features, sum_in_tree_order
from lepton_mpi.nn.move import Move
from lepton_mpi.ops.array_module import array_module
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.runtime.ranges import ShardCut


class ReplicateToShards(Move):
    """Replicated to one copy a chunk: nothing to do forward; the copies' gradients add up."""

    def __init__(self, shard: MPI.Intracomm, chunks: int) -> None:
        """Move over the ranks of grid.shard, which have `chunks` chunks together."""
        self._shard, self._chunks = shard, chunks

    def forward(self, x: Any) -> Any:
        """Return x. Local."""
        return x

    @collective("grid.shard")
    def adjoint(self, dy: Any) -> Any:
        """Return the sum of a list of gradients and those of the other shards. Collective over grid.shard."""
        return _add_up(dy, self._shard, self._chunks)


class SumOverShards(Move):
    """Partial to replicated: the adjoint of `ReplicateToShards`."""

    def __init__(self, shard: MPI.Intracomm, chunks: int) -> None:
        """Move over the ranks of grid.shard, which have `chunks` chunks together."""
        self._shard, self._chunks = shard, chunks

    @collective("grid.shard")
    def forward(self, x: Any) -> Any:
        """Return the sum of a list of parts and those of the other shards. Collective over grid.shard."""
        return _add_up(x, self._shard, self._chunks)

    def adjoint(self, dy: Any) -> Any:
        """Return dy. Local."""
        return dy


class GatherFromShards(Move):
    """Parts of the last dim to a replicated whole. The whole's gradient is the same on all shards, so each keeps its part."""

    def __init__(self, shard: MPI.Intracomm, length: int, unit: int = 1, chunks: int = 0) -> None:
        """Gather a last dim of `length`, divided in whole units over the ranks of grid.shard, see `ShardCut` for the chunks."""
        self._shard = shard
        cut = ShardCut(shard.Get_size(), chunks)
        ranges = [cut.share(r, length, unit) for r in range(shard.Get_size())]
        self._widths = [stop - start for start, stop in ranges]
        self._own = slice(*ranges[shard.Get_rank()])

    @collective("grid.shard")
    def forward(self, x: Any) -> Any:
        """Return the whole [..., F] for the own part. Collective over grid.shard."""
        whole = (*x.shape[:-1], sum(self._widths))
        flat = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        return _on_host(flat, lambda host: gather_features(self._shard, host, self._widths)).reshape(whole)

    def adjoint(self, dy: Any) -> Any:
        """Return the own part. Local."""
        return array_module(dy).ascontiguousarray(dy[..., self._own])


def _on_host(x: Any, move: Any) -> Any:
    """Apply a movement of NumPy arrays to an array of any device.

    Device arrays travel through host memory, which works with every MPI.
    """
    xp = array_module(x)
    if xp is np:
        return move(np.ascontiguousarray(x))
    return xp.asarray(move(xp.asnumpy(x)))


@collective("grid.shard")
def _add_up(parts: Sequence[Any], shard: MPI.Intracomm, chunks: int) -> Any:
    """Return the sum of the chunks of all shards. Collective over grid.shard."""
    xp = array_module(parts[0])
    total = sum_in_tree_order(shard, parts if xp is np else [xp.asnumpy(part) for part in parts], chunks)
    return total if xp is np else xp.asarray(total)
