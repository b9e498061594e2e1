"""Samples by number: the interface of every format, its in-memory form, and subsets.

Shapes: B samples asked for, N samples in all.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.comm.agreement import do_on_all
from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.waiting import wait
from lepton_mpi.data.validation import check_ids
from lepton_mpi.errors import DataError
from lepton_mpi.models.task import LabelKind
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.runtime.ranges import split_range

_CHUNK_SAMPLES = 1 << 16  # samples whose ids are looked at together
UNLABELLED = -1  # the label of a sample without one; real labels start at 0


class Dataset(ABC):
    """Samples that are read by their number; raw values, as the file holds them.

    Attributes:
        name: what messages and reports call it.
        num_samples: how many samples it has; their numbers are 0 .. num_samples - 1.
        input_shape: shape of one sample, without the batch dim.
        label_kind: what the labels are: classes, values, or none.
        label_shape: shape of one sample's label; () for one class or value, and where there are no labels.
        num_classes: number of classes; 0 unless labels are classes.
        class_names: the name of each class, where the format has them.
    """

    class_names: Sequence[str] = ()

    def __init__(
        self,
        name: str,
        num_samples: int,
        input_shape: tuple[int, ...],
        num_classes: int,
        label_shape: tuple[int, ...] = (),
        label_kind: LabelKind | None = None,
    ) -> None:
        self.name = name
        self.num_samples = num_samples
        self.input_shape = input_shape
        self.label_kind: LabelKind = label_kind or ("class" if num_classes else "none")
        self.label_shape = label_shape
        self.num_classes = num_classes if self.label_kind == "class" else 0

    @abstractmethod
    def read_raw(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """Return the inputs of samples in the dtype that holds them, [B, *input_shape], owned by the caller. Local.

        Args:
            indices: int64[B], sample numbers in any order, repeats allowed.
        """

    @abstractmethod
    def read_labels(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """Return the labels of samples, [B, *label_shape], owned by the caller. Local.

        Returns:
            int64 for classes, float32 for values; int64 `UNLABELLED` where there are none.
        """

    def read_inputs(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the inputs of samples as values, float32[B, *input_shape], owned by the caller. Local."""
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and the check of the inputs names it
            return self.read_raw(indices).astype(np.float32, copy=False)

    def read_ids(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return inputs that are numbers of tokens, users or items, int64[B, *input_shape], owned by the caller. Local.

        Raises:
            DataError: an input is negative or no integer that its dtype holds exactly.
        """
        return check_ids(self.read_raw(indices), indices, self.name)

    def read(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """Return inputs float32[B, *input_shape] and labels [B, *label_shape] of samples. Local."""
        return self.read_inputs(indices), self.read_labels(indices)


@final
class ArrayDataset(Dataset):
    """Samples in one array, in memory or memory-mapped.

    Args:
        name: what messages call it.
        inputs: [N, *input_shape], any real dtype and byte order.
        labels: [N, *label_shape], integers for classes, floats for values; None for samples without labels.
        num_classes: number of classes; ignored where labels are not classes.
    """

    def __init__(self, name: str, inputs: NDArray[Any], labels: NDArray[Any] | None, num_classes: int) -> None:
        kind: LabelKind = "none" if labels is None else "value" if labels.dtype.kind == "f" else "class"
        label_shape = () if labels is None else labels.shape[1:]
        super().__init__(name, inputs.shape[0], inputs.shape[1:], num_classes, label_shape, kind)
        self._inputs = np.asarray(inputs)  # of a memory map: the same pages without the slow subclass
        self._labels = None if labels is None else np.asarray(labels)

    def read_raw(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        return np.take(self._inputs, indices, axis=0)

    def read_labels(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        return take_labels(self._labels, indices)


@final
class Subset(Dataset):
    """Some samples of another data set, renumbered from 0 in the order given.

    Args:
        dataset: where the samples come from.
        indices: int64[num_samples], sample numbers in `dataset`.
        name: what messages call it; empty: the name of `dataset`.

    Raises:
        DataError: an index lies outside `dataset`.
    """

    def __init__(self, dataset: Dataset, indices: NDArray[np.int64], name: str = "") -> None:
        outside = np.flatnonzero((indices < 0) | (indices >= dataset.num_samples))
        if outside.size:
            raise DataError(
                f"{dataset.name}: subset index {indices[outside[0]]} at place {outside[0]}, expected 0 .. "
                f"{dataset.num_samples - 1}: give numbers of samples that exist"
            )
        d = dataset
        super().__init__(name or d.name, len(indices), d.input_shape, d.num_classes, d.label_shape, d.label_kind)
        self.class_names = d.class_names
        self._dataset = dataset
        self._indices = np.asarray(indices, np.int64)

    def read_raw(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        return self._dataset.read_raw(self._indices[indices])

    def read_ids(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._dataset.read_ids(self._indices[indices])  # whose messages number samples as the file does

    def read_labels(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        return self._dataset.read_labels(self._indices[indices])


@final
class Reshaped(Dataset):
    """The samples of another data set in another shape of as many values, read in C order.

    Args:
        dataset: where the samples come from.
        input_shape: shape of one sample.

    Raises:
        DataError: a sample has another number of values.
    """

    def __init__(self, dataset: Dataset, input_shape: tuple[int, ...]) -> None:
        if math.prod(dataset.input_shape) != math.prod(input_shape):
            raise DataError(
                f"{dataset.name}: expected samples of shape {input_shape}, or flat ones of {math.prod(input_shape)} values, found "
                f"{dataset.input_shape}: give data of the right shape"
            )
        d = dataset
        super().__init__(d.name, d.num_samples, input_shape, d.num_classes, d.label_shape, d.label_kind)
        self._dataset = dataset

    def read_raw(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        return self._dataset.read_raw(indices).reshape(len(indices), *self.input_shape)

    def read_ids(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._dataset.read_ids(indices).reshape(len(indices), *self.input_shape)

    def read_labels(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        return self._dataset.read_labels(indices)


def take_labels(labels: NDArray[Any] | None, indices: NDArray[np.int64]) -> NDArray[Any]:
    """Return rows of an array of labels as `Dataset.read_labels` does. Local.

    Args:
        labels: [N, *label_shape], integers or floats; None: there are no labels.
        indices: int64[B].
    """
    if labels is None:
        return np.full(len(indices), UNLABELLED, np.int64)
    return np.take(labels, indices, axis=0).astype(np.float32 if labels.dtype.kind == "f" else np.int64, copy=False)


def load_into_memory(dataset: Dataset, *, ids: bool = False) -> ArrayDataset:
    """Return the same samples in memory: integers as they are, everything else as float32. Local.

    Args:
        dataset: the samples.
        ids: whether inputs are numbers of tokens, users or items; floats then become int64.

    Raises:
        DataError: inputs that should be ids are none.
    """
    everything = np.arange(dataset.num_samples)
    dtype = dataset.read_raw(everything[:0]).dtype.newbyteorder("=")
    inputs: NDArray[Any]
    if dtype.kind in "bui":
        inputs = (dataset.read_ids if ids else dataset.read_raw)(everything).astype(dtype, copy=False)
    else:
        inputs = dataset.read_ids(everything) if ids else dataset.read_inputs(everything)
    labels = None if dataset.label_kind == "none" else dataset.read_labels(everything)
    return ArrayDataset(dataset.name, inputs, labels, dataset.num_classes)


@collective("comm")
def id_counts(dataset: Dataset, comm: MPI.Intracomm) -> tuple[int, ...]:
    """Return one more than the largest id of each column of inputs [N, K].

    Collective over comm. Each rank scans a part of the samples.

    Args:
        dataset: the samples, K ids each.
        comm: ranks that share the work.

    Returns:
        K counts, equal on all ranks; 0 where there are no samples.

    Raises:
        DataError: the inputs are no columns, or hold something that is no id, on any rank.
    """
    counts = do_on_all(comm, lambda: _count_part(dataset, *split_range(dataset.num_samples, comm.Get_size(), comm.Get_rank())))
    wait(comm.Iallreduce(MPI.IN_PLACE, counts, MPI.MAX), "the numbers of users and items")
    return tuple(counts.tolist())


def _count_part(dataset: Dataset, start: int, stop: int) -> NDArray[np.int64]:
    if len(dataset.input_shape) != 1:
        raise DataError(f"{dataset.name}: expected ids in columns, shape (samples, columns), found samples {dataset.input_shape}")
    counts = np.zeros(dataset.input_shape, np.int64)
    for first in range(start, stop, _CHUNK_SAMPLES):
        ids = dataset.read_ids(np.arange(first, min(first + _CHUNK_SAMPLES, stop)))
        np.maximum(counts, ids.max(axis=0) + 1, out=counts)
    return counts
