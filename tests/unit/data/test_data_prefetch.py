"""Batches made ahead are those of the source, in time, and an end is an end."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from lepton_mpi.data.dataset import ArrayDataset
from lepton_mpi.data.loader import Batch, Loader
from lepton_mpi.data.normalisation import Normalisation
from lepton_mpi.data.prefetch import Prefetcher
from lepton_mpi.data.sampler import Sampler
from lepton_mpi.errors import DataError


class Slow:
    """A loader that takes its time, and maybe fails at a position."""

    def __init__(self, seconds: float, fails_at: tuple[int, int] | None = None) -> None:
        x = np.arange(20, dtype=np.float32).reshape(10, 2)
        dataset = ArrayDataset("ten", x, np.arange(10) % 3, 3)
        self.loader = Loader(dataset, Sampler(10, 1), Normalisation.identity((2,)), global_batch=4)
        self.seconds, self.fails_at = seconds, fails_at
        self.made: list[tuple[int, int]] = []
        self.threads: set[str] = set()

    def batch(self, epoch: int, position: int) -> Batch:
        time.sleep(self.seconds)
        self.made.append((epoch, position))
        self.threads.add(threading.current_thread().name)
        if (epoch, position) == self.fails_at:
            raise DataError("the file is gone")
        return self.loader.batch(epoch, position)


def follow(source: Prefetcher, num: int, pause_s: float = 0.0) -> list[Batch]:
    batches, place = [], (0, 0)
    for _ in range(num):
        batches.append(source.batch(*place))
        place = batches[-1].following
        time.sleep(pause_s)
    return batches


@pytest.mark.parametrize("always", [True, False])
@pytest.mark.parametrize("seconds", [0.0, 0.004])
def test_the_batches_are_those_of_the_source(always: bool, seconds: float) -> None:
    with Prefetcher(Slow(seconds), always=always) as source:
        found = follow(source, 12)
        assert source.is_ahead == (always or seconds > 0)
    expected = follow(Prefetcher(Slow(0.0)), 12)
    for one, other in zip(found, expected, strict=True):
        assert (one.epoch, one.position, one.following, one.sizes) == (other.epoch, other.position, other.following, other.sizes)
        np.testing.assert_array_equal(one.inputs[0], other.inputs[0])
        np.testing.assert_array_equal(one.labels[0], other.labels[0])


def test_training_does_not_wait_for_what_is_ready() -> None:
    slow = Slow(0.02)
    with Prefetcher(slow) as source:
        follow(source, 5, 0.0)
        waits = []
        place = source.batch(1, 8).following
        for _ in range(5):
            time.sleep(0.05)  # a step that takes longer than a batch
            begin = time.perf_counter()
            place = source.batch(*place).following
            waits.append(time.perf_counter() - begin)
    assert max(waits[1:]) < 0.01
    assert slow.threads == {"MainThread", "prefetch"}


def test_a_fast_source_gets_no_thread() -> None:
    slow = Slow(0.0)
    with Prefetcher(slow) as source:
        follow(source, 50)
    assert slow.threads == {"MainThread"}


def test_no_more_than_a_few_batches_lie_ready() -> None:
    slow = Slow(0.001)
    with Prefetcher(slow, always=True) as source:
        source.batch(0, 0)
        time.sleep(0.2)
        assert len(slow.made) <= 5


def test_another_position_than_the_next_one() -> None:
    with Prefetcher(Slow(0.001), always=True) as source:
        follow(source, 3)
        assert (source.batch(5, 4).epoch, source.batch(5, 8).position) == (5, 8)


@pytest.mark.parametrize("always", [True, False])
def test_an_error_is_raised_where_the_batch_is_asked_for(always: bool) -> None:
    with Prefetcher(Slow(0.0, fails_at=(1, 4)), always=always) as source:
        batches = follow(source, 4)
        with pytest.raises(DataError, match="the file is gone"):
            source.batch(*batches[-1].following)
        assert source.batch(0, 0).position == 0  # and nothing hangs afterwards


def test_the_end_ends_the_thread() -> None:
    source = Prefetcher(Slow(0.001), always=True)
    follow(source, 2)
    source.close()
    source.close()
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())
