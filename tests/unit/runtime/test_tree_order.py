"""Sums in the order of one tree have the same bits however their terms are spread."""

from __future__ import annotations

import numpy as np
import pytest

from lepton_mpi.runtime.ranges import ShardCut, split_range
from lepton_mpi.runtime.tree_order import add_leaves, add_nodes, whole_nodes


@pytest.mark.parametrize("num_leaves", [1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 16])
def test_the_sum_does_not_depend_on_who_holds_the_leaves(num_leaves: int) -> None:
    leaves = np.float32(np.random.default_rng(num_leaves).standard_normal((num_leaves, 5)) * 10.0 ** np.arange(5))
    (alone,) = add_leaves([leaf.copy() for leaf in leaves], 0, num_leaves)
    np.testing.assert_allclose(alone, leaves.sum(axis=0), rtol=1e-5, atol=1e-4)
    for holders in range(1, num_leaves + 1):
        spread = [split_range(num_leaves, holders, h) for h in range(holders)]
        values = [v for first, last in spread for v in add_leaves([x.copy() for x in leaves[first:last]], first, num_leaves)]
        assert add_nodes(values, spread, num_leaves).tobytes() == alone.tobytes()


def test_the_order_matters() -> None:
    """A rank-order sum would not do: these bits differ from it."""
    leaves = np.float32(np.random.default_rng(1).standard_normal((8, 100)))
    (tree,) = add_leaves([leaf.copy() for leaf in leaves], 0, 8)
    in_order = leaves[0].copy()
    for leaf in leaves[1:]:
        in_order += leaf
    assert tree.tobytes() != in_order.tobytes()


def test_nodes_of_a_run_of_leaves() -> None:
    assert whole_nodes(0, 8, 8) == [(0, 8)]
    assert whole_nodes(4, 8, 8) == [(4, 8)]
    assert whole_nodes(3, 8, 8) == [(3, 4), (4, 8)]
    assert whole_nodes(0, 4, 6) == [(0, 4)]
    assert whole_nodes(2, 5, 6) == [(2, 4), (4, 5)]
    assert whole_nodes(3, 3, 6) == []


@pytest.mark.parametrize("length", [1, 2, 6, 7, 64])
@pytest.mark.parametrize("unit", [1, 3])
def test_chunks_do_not_depend_on_the_shards(length: int, unit: int) -> None:
    length *= unit
    whole = ShardCut(1, 4)
    bounds = [whole.chunk(c, length, unit) for c in range(whole.num_chunks(length, unit))]
    assert [stop for _, stop in bounds[:-1]] == [start for start, _ in bounds[1:]] and (bounds[0][0], bounds[-1][1]) == (0, length)
    for shards in (1, 2, 3, 4):
        cut, found = ShardCut(shards, 4), []
        for shard in range(shards):
            start, stop = cut.share(shard, length, unit)
            found += [(start + s.start, start + s.stop) for s in cut.slices(shard, length, unit)]
            assert sum(s.stop - s.start for s in cut.slices(shard, length, unit)) == stop - start
        assert found == bounds


def test_without_chunks_each_shard_has_one() -> None:
    for shards in (1, 2, 3, 5):
        shares = [ShardCut(shards).share(shard, 12, 2) for shard in range(shards)]
        assert shares == [tuple(2 * bound for bound in split_range(6, shards, shard)) for shard in range(shards)]
        assert all(len(ShardCut(shards).slices(shard, 12, 2)) == 1 for shard in range(shards))
