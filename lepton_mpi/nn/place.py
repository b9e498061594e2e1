"""Where a layer runs: which shard it is, and how it reaches the other shards and the other data ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, final

from lepton_mpi.comm.contract import collective
from lepton_mpi.nn.move import Move, Stay
from lepton_mpi.ops.product import Precision
from lepton_mpi.runtime.ranges import split_range


@dataclass(frozen=True)
class Place(ABC):
    """A place of the grid as a layer sees it.

    Attributes:
        shards, shard: how many shards divide a layer, and which one this is.
        is_first_data: whether this is the first rank of the data axis, which speaks for what all of them know alike.
        seed: seed of the run.
        precision: precision of matrix products.
    """

    shards: int = 1
    shard: int = 0
    is_first_data: bool = True
    seed: int = 0
    precision: Precision = "fp32"

    def share(self, length: int, unit: int = 1) -> tuple[int, int]:
        """Return (start, stop) of this shard's part of a dim that is divided in whole units. Local."""
        start, stop = split_range(length // unit, self.shards, self.shard)
        return start * unit, stop * unit

    @abstractmethod
    def replicate(self) -> Move:
        """Return the move of a replicated array into a divided layer: x forward, the sum over shards backward."""

    @abstractmethod
    def sum(self) -> Move:
        """Return the move that makes partial arrays a replicated one: the sum over shards forward, dy backward."""

    @abstractmethod
    def gather(self, length: int, unit: int = 1) -> Move:
        """Return the move that makes the whole of a last dim of `length` out of the shards' parts."""

    @abstractmethod
    @collective("grid.data")
    def gather_over_data(self, x: Any) -> Any:
        """Return the 1-D arrays of all ranks of the data axis, [data ranks, n], in rank order.

        Collective over grid.data.
        """


@final
@dataclass(frozen=True)
class Alone(Place):
    """The only place of a grid of one."""

    def replicate(self) -> Move:
        """Return the identity."""
        return Stay()

    def sum(self) -> Move:
        """Return the identity."""
        return Stay()

    def gather(self, length: int, unit: int = 1) -> Move:
        """Return the identity."""
        return Stay()

    def gather_over_data(self, x: Any) -> Any:
        """Return x as the only row."""
        return x[None]
