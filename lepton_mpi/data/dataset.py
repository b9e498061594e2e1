"""Samples by number: the interface of every format, its in-memory form, and subsets.

Shapes: B samples asked for, N samples in all.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.errors import DataError

UNLABELLED = -1  # the label of a sample without one; real labels start at 0


class Dataset(ABC):
    """Samples that are read by their number; raw values, as the file holds them.

    Attributes:
        name: what messages and reports call it.
        num_samples: how many samples it has; their numbers are 0 .. num_samples - 1.
        input_shape: shape of one sample, without the batch dim.
        num_classes: number of classes; 0 when the samples have no labels.
    """

    def __init__(self, name: str, num_samples: int, input_shape: tuple[int, ...], num_classes: int) -> None:
        self.name = name
        self.num_samples = num_samples
        self.input_shape = input_shape
        self.num_classes = num_classes

    @abstractmethod
    def read_inputs(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the inputs of samples, float32[B, *input_shape], owned by the caller. Local.

        Args:
            indices: int64[B], sample numbers in any order, repeats allowed.
        """

    @abstractmethod
    def read_labels(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the labels of samples, int64[B]; `UNLABELLED` where `num_classes` is 0. Local."""

    def read(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return inputs float32[B, *input_shape] and labels int64[B] of samples. Local."""
        return self.read_inputs(indices), self.read_labels(indices)


@final
class ArrayDataset(Dataset):
    """Samples in one array, in memory or memory-mapped.

    Args:
        name: what messages call it.
        inputs: [N, *input_shape], any real dtype and byte order.
        labels: int64[N], or None for samples without labels.
        num_classes: number of classes; ignored without labels.
    """

    def __init__(self, name: str, inputs: NDArray[Any], labels: NDArray[np.int64] | None, num_classes: int) -> None:
        super().__init__(name, inputs.shape[0], inputs.shape[1:], 0 if labels is None else num_classes)
        self._inputs = np.asarray(inputs)  # of a memory map: the same pages without the slow subclass
        self._labels = labels

    def read_inputs(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.take(self._inputs, indices, axis=0).astype(np.float32, copy=False)

    def read_labels(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        if self._labels is None:
            return np.full(len(indices), UNLABELLED, np.int64)
        return np.take(self._labels, indices)


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
        super().__init__(name or dataset.name, len(indices), dataset.input_shape, dataset.num_classes)
        self._dataset = dataset
        self._indices = np.asarray(indices, np.int64)

    def read_inputs(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._dataset.read_inputs(self._indices[indices])

    def read_labels(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
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
        super().__init__(dataset.name, dataset.num_samples, input_shape, dataset.num_classes)
        self._dataset = dataset

    def read_inputs(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._dataset.read_inputs(indices).reshape(len(indices), *self.input_shape)

    def read_labels(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._dataset.read_labels(indices)


def load_into_memory(dataset: Dataset) -> ArrayDataset:
    """Return the same samples as float32 in memory. Local."""
    inputs, labels = dataset.read(np.arange(dataset.num_samples))
    return ArrayDataset(dataset.name, inputs, labels if dataset.num_classes else None, dataset.num_classes)
