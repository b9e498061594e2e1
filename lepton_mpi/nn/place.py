"""Where a layer runs: which shard it is, and how it reaches the other shards and the other data ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

from lepton_mpi.comm.contract import collective
from lepton_mpi.nn.move import AddParts, Move, Replicate, Stay
from lepton_mpi.nn.parameter import Parameter
from lepton_mpi.ops.product import Precision
from lepton_mpi.runtime.ranges import ShardCut

# Takes the gradients of some weights, and leaves zeros.
TakeGradients: TypeAlias = Callable[[Sequence[Parameter]], None]


@dataclass(frozen=True)
class Place(ABC):
    """A place of the grid as a layer sees it.

    A dim that shards divide is divided into chunks of whole units, see `ShardCut`. Each shard has some of them, one unless runs
    are to be the same on every grid, and makes its products chunk by chunk.

    Attributes:
        shards, shard: how many shards divide a layer, and which one this is.
        is_first_data: whether this is the first rank of the data axis, which speaks for what all of them know alike.
        seed: seed of the run.
        precision: precision of matrix products.
        chunks: chunks of a divided dim over all shards; 0: one a shard.
        take: takes the gradients of weights after each piece of work, and leaves zeros; None: they add up where they are.
        sequence: whether what is not divided by features, [B, T, C], is divided by positions: a shard holds its part of T, which
            is that of a dim of length T and unit 1. `replicate` then gathers positions first, and `sum` leaves slices.
    """

    shards: int = 1
    shard: int = 0
    is_first_data: bool = True
    seed: int = 0
    precision: Precision = "fp32"
    chunks: int = 0
    take: TakeGradients | None = None
    sequence: bool = False

    @property
    def cut(self) -> ShardCut:
        """How dims are divided."""
        return ShardCut(self.shards, self.chunks)

    def share(self, length: int, unit: int = 1) -> tuple[int, int]:
        """Return (start, stop) of this shard's part of a dim that is divided in whole units. Local."""
        return self.cut.share(self.shard, length, unit)

    def slices(self, length: int, unit: int = 1) -> tuple[slice, ...]:
        """Return where the chunks of such a dim lie within this shard's part. Local."""
        return self.cut.slices(self.shard, length, unit)

    @abstractmethod
    def replicate(self, length: int = 0, unit: int = 1) -> Move:
        """Return the move of a replicated array into a divided layer: x forward, the sum of a list of gradients backward.

        Args:
            length, unit: the dim that the layer divides: each shard brings a gradient for each of its chunks of it. 0: one a shard.
        """

    @abstractmethod
    def sum(self, length: int = 0, unit: int = 1) -> Move:
        """Return the move that makes lists of partial arrays a replicated one: their sum forward, dy backward.

        Args:
            length, unit: the dim that was summed over: each shard brings a part for each of its chunks of it. 0: one a shard.
        """

    def gather_positions(self) -> Move:
        """Return the move that makes the whole of [B, T, ...] out of the shards' slices of the positions, see `sequence`."""
        return self.replicate()

    @abstractmethod
    def gather(self, length: int, unit: int = 1) -> Move:
        """Return the move that makes the whole of a last dim of `length` out of the shards' parts."""

    @collective("grid.shard")
    def add_chunks(self, columns: Any, length: int) -> Any:
        """Return the sum of the columns of all shards.

        Collective over grid.shard.

        Args:
            columns: [n, own chunks], one for each chunk that this shard has of a dim of `length`; maybe none.
            length: of that dim.

        Returns:
            A new array [n], the same on all shards and for any number of them.
        """
        num = self.cut.num_chunks(length)
        whole = self.gather(num).forward(columns)  # a dim of one column a chunk is divided just as that dim is
        total = whole[:, 0].copy()
        for chunk in range(1, num):
            total += whole[:, chunk]
        return total

    @abstractmethod
    @collective("grid.data")
    def gather_over_data(self, x: Any, num_rows: int = 0) -> Any:
        """Return the rows of all ranks of the data axis, in rank order, [rows, n].

        Collective over grid.data.

        Args:
            x: [own rows, n].
            num_rows: rows of all ranks, of which rank r has `split_range(num_rows, ranks, r)`; 0: one each.
        """


@final
@dataclass(frozen=True)
class Alone(Place):
    """The only place of a grid of one."""

    def replicate(self, length: int = 0, unit: int = 1) -> Move:
        """Return the identity, whose adjoint adds up the chunks."""
        return Replicate()

    def sum(self, length: int = 0, unit: int = 1) -> Move:
        """Return the sum of the chunks."""
        return AddParts()

    def gather(self, length: int, unit: int = 1) -> Move:
        """Return the identity."""
        return Stay()

    def gather_over_data(self, x: Any, num_rows: int = 0) -> Any:
        """Return x."""
        return x
