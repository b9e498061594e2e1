"""Movements between slices of the positions and whole sequences (Korthikanti et al. 2022, section 4.2.2).

Between divided layers a shard holds some positions of each sample, [B, own T, C]; within them it has all positions of its part
of the features. Both ways in are adjoint to each other. Collective over grid.shard. Dims: B samples, T positions, C features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np

from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.reduction import gather_features, sum_and_scatter_in_tree_order
from lepton_mpi.nn.move import Move
from lepton_mpi.ops.array_module import array_module
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.runtime.ranges import ShardCut


@dataclass(frozen=True)
class _OverPositions(Move):
    """What both directions know.

    Attributes:
        shard: the ranks of grid.shard.
        cut: how the positions are divided over them.
        chunks: parts of a sum that all shards have together.
        num_positions: T.
    """

    shard: MPI.Intracomm
    cut: ShardCut
    chunks: int
    num_positions: int = 0

    def of(self, num_positions: int) -> Move:
        """Return the move for sequences of a length. Local."""
        return replace(self, num_positions=num_positions)

    def _lengths(self) -> list[int]:
        shares = (self.cut.share(r, self.num_positions) for r in range(self.cut.shards))
        return [stop - start for start, stop in shares]

    @collective("grid.shard")
    def _gather(self, x: Any) -> Any:
        """Return [B, T, ...] for the own positions of it. Collective over grid.shard."""
        xp, lengths = array_module(x), self._lengths()
        inner = math.prod(x.shape[2:])
        host = np.ascontiguousarray(x if xp is np else xp.asnumpy(x))
        whole = gather_features(self.shard, host.reshape(len(x), x.shape[1] * inner), [n * inner for n in lengths])
        return xp.asarray(whole).reshape(len(x), self.num_positions, *x.shape[2:])

    @collective("grid.shard")
    def _sum_and_scatter(self, parts: Sequence[Any]) -> Any:
        """Return the own positions of the sum of lists of [B, T, ...] of all shards. Collective over grid.shard."""
        xp, shape, lengths = array_module(parts[0]), parts[0].shape, self._lengths()
        inner = math.prod(shape[2:])
        hosts = [(part if xp is np else xp.asnumpy(part)).reshape(shape[0], shape[1] * inner) for part in parts]
        own = sum_and_scatter_in_tree_order(self.shard, hosts, self.chunks, [n * inner for n in lengths])
        return xp.asarray(own).reshape(shape[0], lengths[self.shard.Get_rank()], *shape[2:])


@final
@dataclass(frozen=True)
class GatherPositions(_OverPositions):
    """Slices of the positions to a replicated whole that each chunk of a layer uses."""

    @collective("grid.shard")
    def forward(self, x: Any) -> Any:
        """Return [B, T, ...] for the own positions. Collective over grid.shard."""
        return self._gather(x)

    @collective("grid.shard")
    def adjoint(self, dy: Any) -> Any:
        """Return the own positions of the sum of lists of gradients of all shards. Collective over grid.shard."""
        return self._sum_and_scatter(dy)


@final
@dataclass(frozen=True)
class ScatterSum(_OverPositions):
    """Partial arrays, one for each chunk of a layer, to slices of the positions of their sum: adjoint to `GatherPositions`."""

    @collective("grid.shard")
    def forward(self, x: Any) -> Any:
        """Return the own positions of the sum of lists of parts of all shards. Collective over grid.shard."""
        return self._sum_and_scatter(x)

    @collective("grid.shard")
    def adjoint(self, dy: Any) -> Any:
        """Return [B, T, ...] for the gradient of the own positions. Collective over grid.shard."""
        return self._gather(dy)
