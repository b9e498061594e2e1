"""Opening what the configuration names: training and test sets, and files to predict on."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.comm.agreement import do_on_all
from lepton_mpi.comm.contract import collective
from lepton_mpi.config.schema import DataConfig
from lepton_mpi.data.dataset import Dataset, Subset
from lepton_mpi.data.formats.registry import locate_parts, open_format, open_unlabelled
from lepton_mpi.data.formats.tokens import TokenWindows, scan_tokens
from lepton_mpi.data.needs import DataNeeds
from lepton_mpi.data.selection import choose_first, hold_out
from lepton_mpi.data.storage.staging import stage
from lepton_mpi.data.streams.loader import OpenedStream, open_stream
from lepton_mpi.errors import DataError, RankMismatchError
from lepton_mpi.runtime.mpi import MPI

_TRAINING = " (training)"
# Windows of text that are enough to tell models apart; all of a long text would take longer than training.
_TEST_WINDOWS = 256
# Ranks compare this much of the labels, in samples spread evenly over them: a few hundredths of a second.
_DIGEST_NBYTES = 16 << 20


@final
@dataclass(frozen=True)
class DataSplits:
    """What to train on and what training is judged on, with equal shapes of inputs and labels, and classes.

    Attributes:
        train: the training set, without the samples that are held out of it.
        test: the test set, or with `data.validation_fraction` the validation set; may have no samples.
        stream: where samples to train on arrive while training runs; `train` then has none and only tells their shapes.
    """

    train: Dataset
    test: Dataset
    stream: OpenedStream | None = None


@collective("comm")
def open_datasets(config: DataConfig, comm: MPI.Intracomm, needs: DataNeeds = DataNeeds()) -> DataSplits:  # noqa: B008 - frozen
    """Open the training and the test set.

    Collective over comm. Every rank opens the files itself, and reads of them what it needs. With
    `data.validation_fraction` the validation set takes the place of the test set, which `open_test_set` returns.

    Args:
        config: the `data` section.
        comm: all ranks that will read.
        needs: what the task needs of the data.

    Raises:
        ConfigError: a format that does not exist, or text without a context.
        DataError: a file is missing or malformed, on any rank.
        RankMismatchError: ranks found different data, as happens with copies on node-local disks.
    """
    if config.format == "stream":
        return _open_stream(config, comm, needs)
    config = stage(config, comm)
    num_classes = config.num_classes
    if config.format == "tokens":
        paths = [path for path in (config.path, config.test_path) if path]
        num_classes = _count_tokens(paths, config, comm)
    train, judged = open_together(lambda: _open_for_training(config, needs, num_classes), comm)
    return DataSplits(train, judged)


@collective("comm")
def open_whole(config: DataConfig, comm: MPI.Intracomm, needs: DataNeeds = DataNeeds()) -> Dataset:  # noqa: B008 - frozen
    """Open all samples of `data.path`, nothing held out.

    Collective over comm. Arguments and errors are those of `open_datasets`.
    """
    config = stage(config, comm)
    num_classes = config.num_classes
    if config.format == "tokens":
        num_classes = _count_tokens([config.path], config, comm)
    path = locate_parts(config)[0]
    (dataset,) = open_together(lambda: [_open_labelled(config, path, config.labels_path, needs, num_classes)], comm)
    return dataset


@collective("comm")
def _open_stream(config: DataConfig, comm: MPI.Intracomm, needs: DataNeeds) -> DataSplits:
    """Open a stream to train on, and the file to test on, if one is named. Collective over comm."""
    stream = open_stream(config, comm, needs)
    test: Dataset = stream.samples
    if config.test_path:
        (test,) = open_together(lambda: [open_test_set(config, needs)], comm)
        if test.input_shape != stream.samples.input_shape:
            raise DataError(
                f"{config.test_path}: expected samples of shape {stream.samples.input_shape} as in {config.path}, found "
                f"{test.input_shape}: give a CSV file with the columns of the stream"
            )
    return DataSplits(stream.samples, test, stream)


def open_test_set(config: DataConfig, needs: DataNeeds = DataNeeds()) -> Dataset:  # noqa: B008 - frozen
    """Open the test set alone; the training file is left closed unless the test samples are held out of it. Local.

    Arguments and errors are those of `open_datasets`.
    """
    if config.format == "stream":
        config = replace(config, format="csv")  # a test set does not grow
    num_classes = config.num_classes
    if config.format == "tokens":
        largest = scan_tokens(config.test_path or config.path, config.token_type, num_classes)
        num_classes = num_classes or 1 + largest
    test_path = locate_parts(config)[1]
    if test_path:
        test_set = _open_labelled(config, test_path, config.test_labels_path, needs, num_classes)
        return _limit(test_set, config.test_samples)
    return _open_splits(config, needs, num_classes)[1]


@collective("comm")
def open_together(open_local: Callable[[], Sequence[Dataset]], comm: MPI.Intracomm) -> Sequence[Dataset]:
    """Open data sets on every rank, or raise on every rank.

    Collective over comm.

    Args:
        open_local: opens them on this rank.
        comm: all ranks that will read.

    Raises:
        LeptonError: what `open_local` raised, on any rank.
        RankMismatchError: ranks found different data, as happens with copies on node-local disks.
    """
    datasets = do_on_all(comm, open_local)
    _check_agreement(datasets, comm)
    return datasets


def open_inputs(path: str, format_hint: str, config: DataConfig, needs: DataNeeds = DataNeeds()) -> Dataset:  # noqa: B008
    """Open a file to predict on, with or without labels. Local.

    Args:
        path: the file; ignored for the digits and the standard library.
        format_hint: a `data.format`; empty: told from the file.
        config: the `data` section that the model was trained with: names of columns and arrays.
        needs: what the task needs of the data.

    Raises:
        ConfigError: a format that does not exist, or text without a context.
        DataError: the format cannot be told, or the file is missing or malformed.
    """
    num_classes = config.num_classes
    if format_hint == "tokens":
        largest = scan_tokens(path, config.token_type, num_classes)
        num_classes = num_classes or 1 + largest
    return open_unlabelled(path, format_hint, config, needs, num_classes)


@collective("comm")
def _count_tokens(paths: Sequence[str], config: DataConfig, comm: MPI.Intracomm) -> int:
    """Return the size of the vocabulary of files of tokens, of which each rank scans a part.

    Collective over comm.
    """
    part, parts, given = comm.Get_rank(), comm.Get_size(), config.num_classes
    largest = do_on_all(comm, lambda: max(scan_tokens(path, config.token_type, given, part, parts) for path in paths))
    everywhere: list[int] = comm.allgather(largest)
    return given or 1 + max(everywhere)


def _open_for_training(config: DataConfig, needs: DataNeeds, num_classes: int) -> tuple[Dataset, Dataset]:
    """Return the samples to train on, and those that training is judged on."""
    train, test = _open_splits(config, needs, num_classes)
    if config.validation_fraction:
        train, validation = _split(train, config.validation_fraction, "validation")
        test = _limit(validation, config.test_samples)
    return _keep_first(train, config.first_n), test


def _open_splits(config: DataConfig, needs: DataNeeds, num_classes: int) -> tuple[Dataset, Dataset]:
    path, test_path = locate_parts(config)
    dataset = _open_labelled(config, path, config.labels_path, needs, num_classes)
    if not test_path:
        train, held_out = _split(dataset, config.test_fraction, "test")
        return train, _limit(held_out, config.test_samples)
    test_set = _open_labelled(config, test_path, config.test_labels_path, needs, dataset.num_classes)
    for what, expected, found in (
        ("samples", dataset.input_shape, test_set.input_shape),
        ("labels", dataset.label_shape, test_set.label_shape),
    ):
        if found != expected:
            raise DataError(
                f"{test_path}: expected {what} of shape {expected} as in {path}, found "
                f"{found}: give a test file made like the training file"
            )
    return dataset, _limit(test_set, config.test_samples)


def _limit(dataset: Dataset, test_samples: int) -> Dataset:
    """Return the first samples of a test set, as many as `data.test_samples` says."""
    limit = test_samples if test_samples >= 0 else _TEST_WINDOWS if isinstance(dataset, TokenWindows) else 0
    return Subset(dataset, np.arange(limit)) if 0 < limit < dataset.num_samples else dataset


def _split(dataset: Dataset, fraction: float, purpose: str) -> tuple[Dataset, Dataset]:
    """Return the samples to train on and those held out for a purpose."""
    if isinstance(dataset, TokenWindows):
        return dataset.split(fraction)  # the end of the text: windows at random would stand among what was learnt
    held = hold_out(_classes_of(dataset), fraction)
    train, test = np.flatnonzero(~held), np.flatnonzero(held)
    name = dataset.name.removesuffix(_TRAINING)
    return Subset(dataset, train, name + _TRAINING), Subset(dataset, test, f"{name} ({purpose})")


def _keep_first(dataset: Dataset, count: int) -> Dataset:
    """Return as many samples of a training set, the first ones of each class; 0, or more than there are: all."""
    if not 0 < count < dataset.num_samples:
        return dataset
    if isinstance(dataset, TokenWindows):
        return dataset.first(count)
    return Subset(dataset, choose_first(_classes_of(dataset), count))


def _classes_of(dataset: Dataset) -> NDArray[np.int64]:
    """Return the class of each sample, or one class for all where samples have none to keep in proportion."""
    if dataset.label_kind == "class" and not dataset.label_shape:
        classes: NDArray[np.int64] = dataset.read_labels(np.arange(dataset.num_samples))
        return classes
    return np.zeros(dataset.num_samples, np.int64)


def _open_labelled(config: DataConfig, path: str, labels_path: str, needs: DataNeeds, num_classes: int) -> Dataset:
    dataset = open_format(config.format, path, labels_path, config, needs, num_classes)
    if dataset.label_kind == "none" and needs.labels != "none":
        raise DataError(f"{path}: expected labelled samples, found no labels: set data.labels_path and data.test_labels_path")
    return dataset


@collective("comm")
def _check_agreement(datasets: Sequence[Dataset], comm: MPI.Intracomm) -> None:
    """Accept data that is the same on all ranks, as far as shapes and labels tell. Collective over comm."""
    found = [_describe(dataset) for dataset in datasets]
    everywhere: list[list[str]] = comm.allgather(found)
    for rank, other in enumerate(everywhere):
        if other != everywhere[0]:
            raise RankMismatchError(
                f"rank 0 opened {'; '.join(everywhere[0])}, but rank {rank} opened {'; '.join(other)}: "
                "give all nodes the same files (data.path, data.test_path)"
            )


def _describe(dataset: Dataset) -> str:
    nbytes = 8 * dataset.num_samples * math.prod(dataset.label_shape)
    labels = dataset.read_labels(np.arange(0, dataset.num_samples, 1 + nbytes // _DIGEST_NBYTES))
    kind = {"class": f"{dataset.num_classes} classes", "value": "values as labels", "none": "no labels"}[dataset.label_kind]
    return (
        f"{dataset.name}: {dataset.num_samples} samples of shape {dataset.input_shape}, {kind}, "
        f"labels of shape {dataset.label_shape} with CRC-32 {zlib.crc32(labels.tobytes()):08x}"
    )
