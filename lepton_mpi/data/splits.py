"""Opening what the configuration names: training and test sets, and files to predict on."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.comm.agreement import do_on_all
from lepton_mpi.comm.contract import collective
from lepton_mpi.config.schema import DataConfig
from lepton_mpi.data.csv import open_csv
from lepton_mpi.data.dataset import Dataset, Subset
from lepton_mpi.data.digits import open_digits
from lepton_mpi.data.hdf5 import Hdf5Dataset
from lepton_mpi.data.idx import open_idx
from lepton_mpi.data.npy import open_npy
from lepton_mpi.data.npz import open_npz
from lepton_mpi.data.validation import check_file, guess_format
from lepton_mpi.errors import ConfigError, DataError, RankMismatchError
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.runtime.random import random_key, uniform

_HOLDOUT_KEY = random_key(0, "holdout")  # fixed: every run on a data set is judged on the same samples


@final
@dataclass(frozen=True)
class DataSplits:
    """Training and test set, with equal input shapes and classes; `test` may have no samples."""

    train: Dataset
    test: Dataset


@collective("comm")
def open_datasets(config: DataConfig, comm: MPI.Intracomm) -> DataSplits:
    """Open the training and the test set.

    Collective over comm. Every rank opens the files itself, and reads of them what it needs.

    Args:
        config: the `data` section.
        comm: all ranks that will read.

    Raises:
        ConfigError: a format that does not exist.
        DataError: a file is missing or malformed, on any rank.
        RankMismatchError: ranks found different data, as happens with copies on node-local disks.
    """
    train, test = open_together(lambda: _open_splits(config), comm)
    return DataSplits(train, test)


def open_test_set(config: DataConfig) -> Dataset:
    """Open the test set alone; the training file is left closed unless the test samples are held out of it. Local.

    Arguments and errors are those of `open_datasets`.
    """
    if config.test_path:
        return _open_labelled(config, config.test_path, config.test_labels_path, config.num_classes)
    return _open_splits(config)[1]


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


def open_inputs(path: str, format_hint: str, config: DataConfig) -> Dataset:
    """Open a file to predict on, with or without labels. Local.

    Args:
        path: the file; ignored for the digits.
        format_hint: a `data.format`; empty: told from the file.
        config: the `data` section that the model was trained with: names of columns and arrays.

    Raises:
        DataError: the format cannot be told, or the file is missing or malformed.
    """
    if format_hint == "digits":
        return open_digits(config.num_classes)
    check_file(path)
    name = format_hint or guess_format(path)
    if name is None:
        raise DataError(
            f"{path}: expected one of idx, npz, npy, csv, hdf5, found neither their magic number nor name: give the format"
        )
    return _open(name, path, "", config, config.num_classes, labels_required=False)


def hold_out(labels: NDArray[np.int64], fraction: float) -> NDArray[np.bool_]:
    """Choose samples for testing, of each class in proportion. Local.

    The choice depends on the labels and the fraction alone. One sample of each class always stays
    for training.

    Args:
        labels: int64[N].
        fraction: share of the samples to choose, rounded down to a whole number of samples.

    Returns:
        bool[N], True where a sample is for testing.
    """
    num_samples = len(labels)
    order = np.lexsort((uniform(_HOLDOUT_KEY, 0, num_samples), labels))  # by class, at random within each
    ordered = labels[order]
    candidates = order[1:][ordered[1:] == ordered[:-1]]  # all but the first of each class
    count = min(int(num_samples * fraction), len(candidates))
    # Every len(candidates) / count-th, in integers: as evenly over the classes as whole numbers allow.
    held = np.zeros(num_samples, np.bool_)
    held[candidates[(np.arange(count) * len(candidates)) // max(count, 1)]] = True
    return held


def _open_splits(config: DataConfig) -> tuple[Dataset, Dataset]:
    dataset = _open_labelled(config, config.path, config.labels_path, config.num_classes)
    if not config.test_path:
        held = hold_out(dataset.read_labels(np.arange(dataset.num_samples)), config.test_fraction)
        train, test = np.flatnonzero(~held), np.flatnonzero(held)
        return Subset(dataset, train, f"{dataset.name} (training)"), Subset(dataset, test, f"{dataset.name} (test)")
    test_set = _open_labelled(config, config.test_path, config.test_labels_path, dataset.num_classes)
    if test_set.input_shape != dataset.input_shape:
        raise DataError(
            f"{config.test_path}: expected samples of shape {dataset.input_shape} as in {config.path}, found "
            f"{test_set.input_shape}: give a test file made like the training file"
        )
    return dataset, test_set


def _open_labelled(config: DataConfig, path: str, labels_path: str, num_classes: int) -> Dataset:
    dataset = _open(config.format, path, labels_path, config, num_classes)
    if dataset.num_classes == 0:
        raise DataError(f"{path}: expected labelled samples, found no labels: set data.labels_path and data.test_labels_path")
    return dataset


def _open(name: str, path: str, labels_path: str, config: DataConfig, num_classes: int, *, labels_required: bool = True) -> Dataset:
    match name:
        case "digits":
            return open_digits(num_classes)
        case "idx":
            return open_idx(path, labels_path, num_classes)
        case "npy":
            return open_npy(path, labels_path, num_classes)
        case "npz":
            return open_npz(path, config.inputs_name, config.labels_name, num_classes, labels_required=labels_required)
        case "csv":
            return open_csv(path, config.label_column, num_classes, labels_required=labels_required)
        case "hdf5":
            return Hdf5Dataset(path, config.inputs_name, config.labels_name, num_classes, labels_required=labels_required)
    raise ConfigError(f"data.format: expected digits, idx, npz, npy, csv or hdf5, found {name!r}: choose one of them")


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
    labels = dataset.read_labels(np.arange(dataset.num_samples))
    return (
        f"{dataset.name}: {dataset.num_samples} samples of shape {dataset.input_shape}, {dataset.num_classes} classes, "
        f"labels with CRC-32 {zlib.crc32(labels.tobytes()):08x}"
    )
