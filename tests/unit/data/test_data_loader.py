"""The loader: a ledger of samples over any number of ranks, micro-batches, and the arrays it returns."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest

from lepton_mpi.config.augmentation import AugmentationSettings
from lepton_mpi.data.augmentation import Augmentation, ImageLayout
from lepton_mpi.data.dataset import ArrayDataset, Dataset, Subset
from lepton_mpi.data.formats.digits import open_digits
from lepton_mpi.data.loader import BatchCut, Loader
from lepton_mpi.data.normalisation import Normalisation
from lepton_mpi.data.prefetch import Prefetcher
from lepton_mpi.data.sampler import Sampler, SequentialSampler
from lepton_mpi.errors import DataError

IDENTITY = Normalisation(np.zeros((), np.float32), np.ones((), np.float32))


def counting_dataset(num_samples: int) -> ArrayDataset:
    """Return samples whose input is their number and whose label is the number modulo 10."""
    numbers = np.arange(num_samples)
    return ArrayDataset("numbers", numbers.reshape(-1, 1), numbers % 10, 10)


class UncachedDataset(Dataset):
    """Claims to be huge, so that the loader reads it batch by batch."""

    def __init__(self) -> None:
        super().__init__("huge", 1 << 20, (17,), 10)
        self.reads: list[np.ndarray] = []

    def read_raw(self, indices):
        self.reads.append(indices)
        return np.repeat(indices[:, None], 17, axis=1)

    def read_labels(self, indices):
        return indices % 10


@pytest.mark.parametrize("data_size", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("micro_batches", [1, 3, 10])
@pytest.mark.parametrize("num_samples, global_batch", [(100, 32), (97, 7), (3, 8), (1, 1), (64, 64)])
def test_ledger(data_size: int, micro_batches: int, num_samples: int, global_batch: int) -> None:
    dataset, order = counting_dataset(num_samples), Sampler(num_samples, 1)
    options = {"global_batch": global_batch}
    alone = Loader(dataset, order, IDENTITY, cut=BatchCut(micro_batches=micro_batches), **options)
    loaders = [Loader(dataset, order, IDENTITY, cut=BatchCut(i, data_size, micro_batches), **options) for i in range(data_size)]
    used, epoch, position, steps = [], 4, 0, 0
    while epoch == 4:
        batches, whole = [loader.batch(epoch, position) for loader in loaders], alone.batch(epoch, position)
        assert loaders[0].locate(4 * loaders[0].steps_per_epoch + steps) == (epoch, position)
        assert {batch.num_global for batch in batches} == {sum(sum(batch.sizes) for batch in batches)}
        assert {batch.following for batch in batches} == {batches[0].following}
        step = np.full(whole.num_global, -1.0)
        for m in range(micro_batches):  # the same samples on any grid
            np.testing.assert_array_equal(np.concatenate([batch.inputs[m] for batch in batches]), whole.inputs[m])
            for batch in batches:
                assert len(batch.inputs[m]) == len(batch.labels[m]) == batch.sizes[m]
                rows = slice(batch.first_rows[m], batch.first_rows[m] + batch.sizes[m])
                assert (step[rows] == -1).all() and rows.stop <= whole.num_global
                step[rows] = batch.inputs[m][:, 0]
        np.testing.assert_array_equal(step, order.indices(4, position, len(step)))  # the order of the epoch
        used.append(step)
        (epoch, position), steps = batches[0].following, steps + 1
    assert (epoch, position, steps) == (5, 0, loaders[0].steps_per_epoch)
    np.testing.assert_array_equal(np.sort(np.concatenate(used)), np.arange(num_samples))


@pytest.mark.parametrize("sizes", [(1, 5), (2, 3), (3, 16), (16, 2), (5, 1)], ids=str)
@pytest.mark.parametrize("batch_after", [32, 11])
def test_ledger_across_a_resume_on_another_grid(sizes: tuple[int, int], batch_after: int) -> None:
    """A run stops within an epoch; another grid, batch and number of micro-batches go on at its position, batches made ahead."""
    dataset, order = counting_dataset(103), Sampler(103, 1)
    used: list[float] = []
    epoch, position = 2, 0
    for data_size, global_batch, micro_batches, stop in ((sizes[0], 32, 1, 2), (sizes[1], batch_after, 3, 99)):
        options = {"global_batch": global_batch}
        with ExitStack() as stack:
            loaders = [
                Loader(dataset, order, IDENTITY, cut=BatchCut(rank, data_size, micro_batches), **options)
                for rank in range(data_size)
            ]
            sources = [stack.enter_context(Prefetcher(loader, always=True)) for loader in loaders]
            while epoch == 2 and stop:
                batches = [source.batch(epoch, position) for source in sources]
                used += [x for batch in batches for piece in batch.inputs for x in piece[:, 0].tolist()]
                (epoch, position), stop = batches[0].following, stop - 1
    assert (epoch, position) == (3, 0)
    assert sorted(used) == list(range(103))


def test_micro_batches_and_empty_parts() -> None:
    loader = Loader(counting_dataset(10), SequentialSampler(10), IDENTITY, global_batch=8, cut=BatchCut(micro_batches=3))
    batch = loader.batch(0, 0)
    assert batch.sizes == [3, 3, 2] and [len(x) for x in batch.inputs] == [3, 3, 2] and [len(y) for y in batch.labels] == [3, 3, 2]
    assert loader.batch(0, 8).sizes == [1, 1, 0]
    empty = Loader(counting_dataset(2), SequentialSampler(2), IDENTITY, global_batch=2, cut=BatchCut(2, 3, 2))
    batch = empty.batch(0, 0)
    assert batch.num_global == 2 and batch.sizes == [0, 0] and [x.shape for x in batch.inputs] == [(0, 1), (0, 1)]
    assert batch.first_rows == [1, 2]


def test_position_after_a_change_of_the_global_batch() -> None:
    loader = Loader(counting_dataset(100), Sampler(100, 0), IDENTITY, global_batch=32)
    plan = loader.plan(2, 90)  # left by batches of 30
    assert plan.num_global == 10 and plan.following == (3, 0)
    np.testing.assert_array_equal(plan.indices[0], Sampler(100, 0).indices(2, 90, 10))


def test_only_what_is_wanted() -> None:
    dataset = UncachedDataset()
    loader = Loader(dataset, SequentialSampler(1 << 20), IDENTITY, global_batch=4, want_inputs=False)
    batch = loader.batch(0, 4)
    assert batch.inputs == [] and batch.sizes == [4] and dataset.reads == []
    np.testing.assert_array_equal(batch.labels[0], [4, 5, 6, 7])
    loader = Loader(dataset, SequentialSampler(1 << 20), IDENTITY, global_batch=4, want_labels=False, cut=BatchCut(1, 2))
    batch = loader.batch(0, 4)
    assert batch.labels == [] and len(dataset.reads) == 1
    np.testing.assert_array_equal(dataset.reads[0], [6, 7])  # this rank's part and no more
    np.testing.assert_array_equal(batch.inputs[0][:, 0], [6, 7])


@pytest.mark.parametrize("data_size", [1, 3])
def test_changes_come_in_between_reading_and_normalisation(data_size: int) -> None:
    digits, order = open_digits(), Sampler(1797, 9)
    normalisation = Normalisation(np.float32(4), np.float32(6))
    augmentation = Augmentation(AugmentationSettings(cutout=3, mixup=0.3), 5, 1797, 1, ImageLayout(8, 8, "none"), num_classes=10)
    indices = order.indices(3, 40, 20)
    expected = augmentation.inputs(digits.read_inputs, normalisation.apply, 3, indices)
    labels = augmentation.labels(digits.read_labels, 3, indices)
    loaders = [
        Loader(
            digits,
            order,
            normalisation,
            global_batch=20,
            cut=BatchCut(i, data_size, 2),
            augmentation=augmentation,
        )
        for i in range(data_size)
    ]
    batches = [loader.batch(3, 40) for loader in loaders]
    np.testing.assert_array_equal(np.concatenate([batch.inputs[m] for m in range(2) for batch in batches]), expected)
    np.testing.assert_array_equal(np.concatenate([batch.labels[m] for m in range(2) for batch in batches]), labels)
    assert labels.shape == (20, 10) and loaders[0].input_shape == (8, 8)


def test_batches_leave_the_data_set_as_it_is() -> None:
    x = np.arange(8, dtype=np.float32).reshape(4, 2)
    loader = Loader(
        ArrayDataset("d", x, None, 0), SequentialSampler(4), Normalisation(np.float32(1), np.float32(2)), global_batch=4
    )
    first = loader.batch(0, 0).inputs[0].copy()
    np.testing.assert_array_equal(loader.batch(0, 0).inputs[0], first)
    np.testing.assert_array_equal(x, np.arange(8).reshape(4, 2))


def test_impossible_loaders_and_positions() -> None:
    dataset = counting_dataset(10)
    with pytest.raises(DataError, match="an order of 9"):
        Loader(dataset, Sampler(9, 0), IDENTITY, global_batch=4)
    with pytest.raises(DataError, match="expected at least one sample"):
        Loader(Subset(dataset, np.array([], np.int64)), Sampler(0, 0), IDENTITY, global_batch=4)
    loader = Loader(dataset, Sampler(10, 0), IDENTITY, global_batch=4)
    for position in (-1, 10):
        with pytest.raises(DataError, match="expected within 0"):
            loader.batch(0, position)


def test_subset() -> None:
    subset = Subset(counting_dataset(10), np.array([7, 3, 7]), "some")
    assert (subset.name, subset.num_samples, subset.input_shape, subset.num_classes) == ("some", 3, (1,), 10)
    x, y = subset.read(np.array([1, 2]))
    np.testing.assert_array_equal(x, [[3], [7]])
    np.testing.assert_array_equal(y, [3, 7])
    for wrong in (-1, 10):
        with pytest.raises(DataError, match=f"subset index {wrong} at place 1"):
            Subset(counting_dataset(10), np.array([0, wrong]))
