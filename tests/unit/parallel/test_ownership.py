"""Who owns what: every value once, slots for what a node's ranks own and no more."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from lepton_mpi.parallel.gradient_exchange import bucket_bounds
from lepton_mpi.parallel.ownership import BLOCK_VALUES, Ownership, Shard

NUM_STATISTICS = 48


def ownerships(shard: Shard, num_weights: int, bucket_mib: float, num_nodes: int, ranks: int) -> list[list[Ownership]]:
    """Return what the ranks of each node own, where the smallest node has two ranks less than the others."""
    bounds = bucket_bounds(num_weights, bucket_mib)
    return [
        [
            Ownership(bounds, num_weights + NUM_STATISTICS, shard, max(ranks - 2, 1), rank, num_nodes, node)
            for rank in range(ranks if node else max(ranks - 2, 1))
        ]
        for node in range(num_nodes)
    ]


@pytest.mark.parametrize("shard", ["node", "data"])
@pytest.mark.parametrize("num_nodes", [1, 2, 3, 7])
@pytest.mark.parametrize("ranks", [1, 2, 5])
@pytest.mark.parametrize(("num_weights", "bucket_mib"), [(0, 4), (16, 4), (5008, 0.002), (100_000, 0.1)])
def test_each_value_has_one_owner(shard: Shard, num_nodes: int, ranks: int, num_weights: int, bucket_mib: float) -> None:
    nodes = ownerships(shard, num_weights, bucket_mib, num_nodes, ranks)
    owners = np.zeros((num_nodes, num_weights + NUM_STATISTICS), int)
    for node, on_node in enumerate(nodes):
        kept = on_node[0].num_slot_values
        used = np.zeros(kept, int)
        for one in on_node:
            assert one.num_slot_values == kept  # all ranks of a node must agree, since they share the slots
            for start, stop in one.owned:
                owners[node, start:stop] += 1
                used[one.slot_range(start, stop)] += 1
                middle = (start + stop) // 2
                whole = one.slot_range(start, stop)
                assert one.slot_range(middle, stop) == slice(whole.start + middle - start, whole.stop)
        assert (used == 1).all()
        if one.pieces_differ:
            rounding = BLOCK_VALUES * one.num_buckets * one.num_owners
            assert kept <= num_weights / num_nodes + NUM_STATISTICS + rounding
    weights, statistics = np.split(owners, [num_weights], axis=1)
    assert (statistics == 1).all()  # on every node
    assert (weights.sum(axis=0) == (num_nodes if shard == "node" else 1)).all()


def test_pieces_of_a_slice_follow_each_other() -> None:
    for on_node in ownerships("data", 5008, 0.004, 3, 4):
        for one in on_node[: on_node[0].num_owners]:
            for bucket in range(one.num_buckets):
                pieces = one.pieces(bucket, one.rank)
                assert len(pieces) == 3
                assert all(left[1] == right[0] for left, right in pairwise(pieces))
                assert pieces[one.node] in one.owned or pieces[one.node][0] == pieces[one.node][1]


def test_what_another_node_keeps_has_no_place_here() -> None:
    here, there = (on_node[0] for on_node in ownerships("data", 5008, 0.1, 2, 1))
    (start, stop), *_ = there.owned
    for low, high in ((start, stop), (here.owned[0][1] - 1, start + 1), (stop, start)):
        with pytest.raises(IndexError, match="keeps no optimizer state for the values"):
            here.slot_range(low, high)
