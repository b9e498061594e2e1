"""Who owns which part of a flat buffer: whose rank sums its gradients, updates its values and keeps its optimizer state."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Literal

from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.grid import ProcessGrid

# Buckets, slices and pieces are cut at multiples of this many values, the longest codec block.
BLOCK_VALUES = 1024

# Over which ranks the ownership of a bucket is divided: those of each node, or all of the data axis.
Shard = Literal["node", "data"]
Extent = tuple[int, int]


def part(whole: Extent, parts: int, index: int) -> Extent:
    """Return part `index` of `parts` of a range (start, stop), cut at multiples of the codec block. Local.

    Parts get as equal numbers of blocks as can be; there may be none in it.
    """
    start, stop = whole
    first, last = start // BLOCK_VALUES, -(-stop // BLOCK_VALUES)

    def bound(i: int) -> int:
        return min(max((first + (last - first) * i // parts) * BLOCK_VALUES, start), stop)

    return bound(index), bound(index + 1)


class Ownership:
    """How the buckets of a model part are divided, seen from one rank.

    The first `num_owners` ranks of every node own a slice of each bucket. With shard "node" every node has all slices. With
    "data" a slice is cut further, into one piece for each node: each value has one owner on the whole data axis, and a node keeps
    optimizer state for its own pieces alone (Rajbhandari et al. 2020, ZeRO, stage 1). Running statistics are no part of the
    buckets: every node has them, and its first rank owns them.

    Attributes:
        bounds: where buckets begin, and where the statistics do.
        shard: "node" or "data".
        num_owners: ranks of each node that own slices.
        rank: this rank among those of its node that hold the model part.
        num_nodes: nodes along the data axis.
        node: which of them this one is.
    """

    def __init__(
        self, bounds: Sequence[int], num_values: int, shard: Shard, num_owners: int, rank: int, num_nodes: int, node: int
    ) -> None:
        """Note the sizes. Local.

        Args:
            bounds: see the class.
            num_values: length of the flat buffer.
            shard: see the class.
            num_owners: see the class.
            rank: see the class.
            num_nodes: see the class.
            node: see the class.
        """
        self.shard: Shard = shard
        self.num_owners, self.rank = num_owners, rank
        self.num_nodes, self.node = num_nodes, node
        self.bounds = list(bounds)
        self._buckets = list(pairwise(bounds))
        self._statistics = (bounds[-1], num_values)

    @property
    def pieces_differ(self) -> bool:
        """Whether nodes own different values."""
        return self.shard == "data" and self.num_nodes > 1

    @property
    def num_buckets(self) -> int:
        """Number of buckets."""
        return len(self._buckets)

    def pieces(self, bucket: int, owner: int) -> list[Extent]:
        """Return the pieces of a slice that the nodes own, in order: one for each node, or one for all. Local."""
        owned = part(self._buckets[bucket], self.num_owners, owner)
        return [part(owned, self.num_nodes, node) for node in range(self.num_nodes)] if self.pieces_differ else [owned]

    def _owned(self, owner: int) -> list[Extent]:
        """Return what a rank of this node owns."""
        extents: list[Extent] = []
        if owner < self.num_owners:
            mine = self.node if self.pieces_differ else 0
            extents = [self.pieces(bucket, owner)[mine] for bucket in range(self.num_buckets)]
        if owner == 0:
            extents.append(self._statistics)
        return [(start, stop) for start, stop in extents if start < stop]

    @cached_property
    def owned(self) -> list[Extent]:
        """What this rank owns of the flat buffer, in order; the ranks of a node own what the node keeps, each value once."""
        return self._owned(self.rank)

    @cached_property
    def _kept(self) -> list[Extent]:
        if not self.pieces_differ:
            return [(0, self._statistics[1])]
        return sorted(extent for owner in range(self.num_owners) for extent in self._owned(owner))

    @cached_property
    def _kept_offsets(self) -> list[int]:
        return list(accumulate((stop - start for start, stop in self._kept), initial=0))

    @property
    def num_slot_values(self) -> int:
        """How many values of an optimizer slot this node keeps: all, or those that its ranks own."""
        return self._kept_offsets[-1]

    def slot_range(self, start: int, stop: int) -> slice:
        """Return where a range of the flat buffer that one rank of this node owns lies in the node's slots. Local.

        Raises:
            IndexError: the node keeps no optimizer state for all of it.
        """
        index = bisect_right(self._kept, (start, self._statistics[1] + 1)) - 1
        first, last = self._kept[index] if index >= 0 else (0, 0)
        if not first <= start <= stop <= last:
            raise IndexError(f"this node keeps no optimizer state for the values {start}..{stop}")
        offset = self._kept_offsets[index] - first
        return slice(start + offset, stop + offset)


@collective("grid.data_in_node")
def find_ownership(grid: ProcessGrid, bounds: Sequence[int], num_values: int, shard: Shard) -> Ownership:
    """Return who owns what of this rank's model part.

    Collective over grid.data_in_node.

    Args:
        grid: the process grid.
        bounds: see `Ownership`.
        num_values: see `Ownership`.
        shard: see `Ownership`.
    """
    across = (grid.data_across.Get_size(), grid.data_across.Get_rank())
    num_nodes, node = grid.data_in_node.bcast(across, root=0)  # only the first rank's peers are on all nodes
    return Ownership(bounds, num_values, shard, grid.num_owners, grid.data_in_node.Get_rank(), num_nodes, node)
