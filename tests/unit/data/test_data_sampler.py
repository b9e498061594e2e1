"""The sampler: permutations, evenness, independence of epochs; any portion alone gives the same samples."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_mpi.data.sampler import Sampler, SequentialSampler
from lepton_mpi.errors import DataError


def excess(counts: np.ndarray) -> float:
    """Return by how many standard deviations a chi-square statistic of equal chances exceeds its mean."""
    expected, freedom = counts.sum() / counts.size, counts.size - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom))


@pytest.mark.parametrize("num_samples", [1, 2, 3, 4, 5, 6, 7, 16, 17, 101, 1797, 65536, 1_000_000])
def test_every_sample_once(num_samples: int) -> None:
    for epoch in range(3):
        indices = Sampler(num_samples, 11).indices(epoch, 0, num_samples)
        assert indices.dtype == np.int64
        np.testing.assert_array_equal(np.sort(indices), np.arange(num_samples))


@settings(deadline=None)
@given(num_samples=st.integers(1, 3000), seed=st.integers(0, 2**40), epoch=st.integers(0, 10**9), data=st.data())
def test_portions_agree_with_the_whole(num_samples: int, seed: int, epoch: int, data: st.DataObject) -> None:
    whole = Sampler(num_samples, seed).indices(epoch, 0, num_samples)
    np.testing.assert_array_equal(np.sort(whole), np.arange(num_samples))
    start = data.draw(st.integers(0, num_samples))
    count = data.draw(st.integers(0, num_samples - start))
    sampler = Sampler(num_samples, seed)
    sampler.indices(epoch + 1, 0, 1)  # what was asked before must not matter
    np.testing.assert_array_equal(sampler.indices(epoch, start, count), whole[start : start + count])


@pytest.mark.parametrize("num_samples", [2, 3, 4, 5])
def test_all_orders_of_few_samples_come_equally_often(num_samples: int) -> None:
    sampler = Sampler(num_samples, 1)
    found = Counter(tuple(sampler.indices(epoch, 0, num_samples).tolist()) for epoch in range(6000))
    assert excess(np.array([found[order] for order in itertools.permutations(range(num_samples))])) < 4


@pytest.mark.parametrize("num_samples", [7, 100, 1797])
def test_places_are_even_and_epochs_independent(num_samples: int) -> None:
    sampler = Sampler(num_samples, 5)
    found = np.stack([sampler.indices(epoch, 0, 3) for epoch in range(8000)])
    for place in range(3):
        assert abs(excess(np.bincount(found[:, place], minlength=num_samples))) < 4
    step = (found[:, 1] - found[:, 0]) % num_samples  # neighbours in an epoch
    assert abs(excess(np.bincount(step, minlength=num_samples)[1:])) < 4
    turn = (found[1:, 0] - found[:-1, 0]) % num_samples  # one place in successive epochs
    assert abs(excess(np.bincount(turn, minlength=num_samples))) < 4


def test_seeds_and_epochs_differ() -> None:
    orders = [Sampler(1000, seed).indices(epoch, 0, 1000) for seed in range(3) for epoch in range(3)]
    for a, b in itertools.combinations(orders, 2):
        assert (a == b).sum() < 10  # 1 is expected of independent permutations


def test_huge_sets_cost_what_is_asked_for() -> None:
    indices = Sampler(10**12, 0).indices(3, 10**12 - 1000, 1000)
    assert len(np.unique(indices)) == 1000 and indices.min() >= 0 and indices.max() < 10**12


def test_sequential() -> None:
    np.testing.assert_array_equal(SequentialSampler(10).indices(5, 3, 4), [3, 4, 5, 6])


@pytest.mark.parametrize("sampler", [Sampler(10, 0), SequentialSampler(10)])
@pytest.mark.parametrize("position, count", [(-1, 2), (0, 11), (10, 1), (3, -1)])
def test_positions_that_do_not_exist(sampler: Sampler | SequentialSampler, position: int, count: int) -> None:
    with pytest.raises(DataError, match=r"expected within 0 \.\. 10"):
        sampler.indices(0, position, count)
