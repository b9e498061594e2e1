"""Divide ranges into parts."""

from __future__ import annotations

from dataclasses import dataclass


def split_range(length: int, parts: int, index: int) -> tuple[int, int]:
    """Return start and stop of part `index` of `parts` contiguous parts. Local.

    The first parts are longer by one where it does not come out even, as in `numpy.array_split`.
    """
    small, longer = divmod(length, parts)
    start = index * small + min(index, longer)
    return start, start + small + (index < longer)


@dataclass(frozen=True)
class ShardCut:
    """How dims are divided over shards: into chunks of whole units, and these, in runs, over the shards.

    Work is done chunk by chunk. Where their number does not follow from the shards, the shapes of that work, and so its
    bits, are the same for any number of shards.

    Attributes:
        shards: ranks that divide a dim.
        chunks: chunks of a dim, at least as many as shards; 0: one a shard.
    """

    shards: int = 1
    chunks: int = 0

    def num_chunks(self, length: int, unit: int = 1) -> int:
        """Return how many chunks a dim has over all shards: no more than it has units. Local."""
        return max(1, min(self.chunks or self.shards, length // unit))

    def own_chunks(self, shard: int, length: int, unit: int = 1) -> tuple[int, int]:
        """Return first and last + 1 of the chunks of a shard. Local."""
        return split_range(self.num_chunks(length, unit), self.shards, shard)

    def chunk(self, index: int, length: int, unit: int = 1) -> tuple[int, int]:
        """Return start and stop of a chunk of a dim. Local."""
        start, stop = split_range(length // unit, self.num_chunks(length, unit), index)
        return start * unit, stop * unit

    def share(self, shard: int, length: int, unit: int = 1) -> tuple[int, int]:
        """Return start and stop of a shard's part of a dim. Local."""
        first, last = self.own_chunks(shard, length, unit)
        if first == last:
            return length, length
        return self.chunk(first, length, unit)[0], self.chunk(last - 1, length, unit)[1]

    def slices(self, shard: int, length: int, unit: int = 1) -> tuple[slice, ...]:
        """Return where the chunks of a shard lie within its part. Local."""
        begin = self.share(shard, length, unit)[0]
        bounds = [self.chunk(c, length, unit) for c in range(*self.own_chunks(shard, length, unit))]
        return tuple(slice(start - begin, stop - begin) for start, stop in bounds)
