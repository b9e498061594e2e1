"""The specification of the gradient exchange: its pieces, its error bounds, and what it does to bad values."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lepton_mpi.parallel.exchange_reference import reduce_nodes
from lepton_mpi.parallel.gradient_exchange import bucket_bounds
from lepton_mpi.parallel.ownership import part

NODES = [(1,), (3,), (1, 1), (2, 2), (2, 1), (3, 1, 2), (1,) * 7, (4,) * 16]  # data ranks of each node


def draw(nodes: tuple[int, ...], num: int, seed: int = 0) -> list[list[NDArray[np.float32]]]:
    random = np.random.default_rng([seed, num, *nodes])
    size = np.exp2(random.integers(-10, 10, num // 256 + 1)).repeat(256)[:num]
    return [[(random.standard_normal(num) * size).astype(np.float32) for _ in range(ranks)] for ranks in nodes]


def exact(nodes: list[list[NDArray[np.float32]]]) -> NDArray[np.float64]:
    return np.sum([grad.astype(np.float64) for ranks in nodes for grad in ranks], axis=0)


def node_sums(nodes: list[list[NDArray[np.float32]]]) -> list[NDArray[np.float64]]:
    return [np.sum([grad.astype(np.float64) for grad in ranks], axis=0) for ranks in nodes]


@given(st.integers(0, 50), st.integers(0, 5000), st.integers(1, 9))
def test_parts_cut_a_range_at_blocks(first_block: int, size: int, parts: int) -> None:
    start, stop = 1024 * first_block, 1024 * first_block + size
    cuts = [part((start, stop), parts, i) for i in range(parts)]
    assert cuts[0][0] == start or size == 0
    assert all(a[1] == b[0] for a, b in pairwise(cuts))
    assert cuts[-1][1] == stop
    assert all(bound % 1024 == 0 for _, bound in cuts[:-1] if bound != stop)
    blocks = [-(-(b - a) // 1024) for a, b in cuts]
    assert max(blocks) - min(blocks) <= 1


@pytest.mark.parametrize("nodes", NODES, ids=str)
def test_exact_sums_are_those_of_float32(nodes: tuple[int, ...]) -> None:
    grads = draw(nodes, 5000)
    found = reduce_nodes(grads, "exact", bucket_bounds(5000, 0.002))
    magnitude = np.sum([np.abs(grad) for ranks in grads for grad in ranks], axis=0)
    assert (np.abs(found - exact(grads)) <= sum(nodes) * 2.0**-24 * magnitude).all()


@pytest.mark.parametrize("nodes", NODES, ids=str)
def test_bf16_errors_are_within_their_bound(nodes: tuple[int, ...]) -> None:
    """Every term but the own one is rounded once to 8 bits, and the sum once more: by 2^-8 of it, at most."""
    grads = draw(nodes, 5000)
    found = reduce_nodes(grads, "bf16", bucket_bounds(5000, 0.002))
    magnitude = np.sum([np.abs(s) for s in node_sums(grads)], axis=0)
    slack = sum(nodes) * 2.0**-24 * np.sum([np.abs(grad) for ranks in grads for grad in ranks], axis=0)
    assert (np.abs(found - exact(grads)) <= 2 * 2.0**-8 * magnitude * (1 + 2.0**-8) + slack).all()
    if len(nodes) > 1:
        assert (found.view(np.uint32) & 0xFFFF == 0).all()  # what left for all nodes was bf16


@pytest.mark.parametrize("nodes", NODES, ids=str)
def test_int8_errors_are_within_their_bound(nodes: tuple[int, ...]) -> None:
    """A code is at most half a step away, a step is 1/127 of the largest value of the block; so for each term and the sum."""
    num = 5000
    grads = draw(nodes, num)
    found = reduce_nodes(grads, "int8", bucket_bounds(num, 0.002))

    def half_step(values: NDArray[np.float64]) -> NDArray[np.float64]:
        filled = np.zeros(-(-num // 256) * 256)
        filled[:num] = np.abs(values)
        return (filled.reshape(-1, 256).max(axis=1) / 254).repeat(256)[:num]

    terms = np.sum([half_step(values) for values in node_sums(grads)], axis=0) if len(nodes) > 1 else np.zeros(num)
    rounding = 1e-5 * np.sum([np.abs(grad) for ranks in grads for grad in ranks], axis=0)
    assert (np.abs(found - exact(grads)) <= 2.01 * terms + rounding).all()  # the sum's largest is at most that of the terms


@pytest.mark.parametrize("mode", ["exact", "bf16", "int8"])
@pytest.mark.parametrize("nodes", NODES, ids=str)
def test_nan_and_infinity_do_not_get_lost(nodes: tuple[int, ...], mode: str) -> None:
    for bad in (np.nan, np.inf, -np.inf):
        for node in range(len(nodes)):
            grads = draw(nodes, 1000)
            grads[node][-1][300] = bad
            found = reduce_nodes(grads, mode, [0, 512, 1000])
            spread = slice(256, 512) if mode == "int8" and len(nodes) > 1 else slice(300, 301)
            assert not np.isfinite(found[spread]).any()
            assert np.isfinite(np.delete(found, np.r_[spread])).all()


@pytest.mark.parametrize("mode", ["exact", "bf16", "int8"])
def test_zeros_stay_zeros(mode: str) -> None:
    grads = [[np.zeros(700, np.float32)] for _ in range(3)]
    assert not reduce_nodes(grads, mode, [0, 700]).any()


def test_one_node_is_never_encoded() -> None:
    grads = draw((3,), 1000)
    expected = (grads[0][0] + grads[0][1]) + grads[0][2]
    for mode in ("exact", "bf16", "int8"):
        assert reduce_nodes(grads, mode, [0, 1000]).tobytes() == expected.tobytes()


def test_the_sources_stay_as_they_were() -> None:
    grads = draw((2, 1), 1000)
    kept = [[grad.copy() for grad in ranks] for ranks in grads]
    reduce_nodes(grads, "int8", [0, 1000])
    assert all(np.array_equal(a, b) for old, new in zip(kept, grads, strict=True) for a, b in zip(old, new, strict=True))


@pytest.mark.parametrize(
    ("num_values", "bucket_mib", "expected"),
    [
        (0, 4.0, [0]),
        (1, 4.0, [0, 1]),
        (1024, 0.0001, [0, 1024]),
        (1025, 0.001, [0, 1024, 1025]),
        (5000, 0.008, [0, 2048, 4096, 5000]),
        (1 << 20, 1.0, [0, 262144, 524288, 786432, 1048576]),
    ],
)
def test_bucket_bounds(num_values: int, bucket_mib: float, expected: list[int]) -> None:
    assert bucket_bounds(num_values, bucket_mib) == expected
