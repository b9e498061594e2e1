"""Batches: which samples a rank takes at a position of an epoch, and their arrays.

A batch follows from (seed, epoch, position) alone. Its samples are dealt to the ranks of the
data axis in contiguous parts, and each part to micro-batches alike; with fewer samples than
parts the last parts are empty.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.data.augmentation import shift_images
from lepton_mpi.data.dataset import Dataset, load_into_memory
from lepton_mpi.data.normalisation import Normalisation
from lepton_mpi.data.sampler import SampleOrder
from lepton_mpi.errors import DataError
from lepton_mpi.runtime.ranges import split_range

# Data sets up to this size are kept in memory as float32: reading a few rows from a file costs
# far more than a step of a small model.
_CACHE_NBYTES = 64 << 20


@final
@dataclass(frozen=True)
class BatchPlan:
    """The samples of one data rank in one step.

    Attributes:
        epoch: pass over the data set.
        position: place of the batch's first sample in the epoch.
        num_global: samples of the batch over all data ranks.
        indices: sample numbers, one int64 array for each micro-batch, maybe empty.
        following: epoch and position of the next batch.
    """

    epoch: int
    position: int
    num_global: int
    indices: list[NDArray[np.int64]]
    following: tuple[int, int]


@final
@dataclass(frozen=True)
class Batch:
    """The arrays of one data rank in one step, one for each micro-batch.

    Attributes:
        epoch: pass over the data set.
        position: place of the batch's first sample in the epoch.
        num_global: samples of the batch over all data ranks.
        sizes: samples of each micro-batch of this rank, maybe 0.
        inputs: float32[size, *input_shape] normalised; an empty list if not wanted.
        labels: int64[size]; an empty list if not wanted.
        following: epoch and position of the next batch.
    """

    epoch: int
    position: int
    num_global: int
    sizes: list[int]
    inputs: list[NDArray[np.float32]]
    labels: list[NDArray[np.int64]]
    following: tuple[int, int]


@final
class Loader:
    """Cut epochs into batches, and read this rank's part of them.

    Args:
        dataset: the samples.
        order: which sample stands where in an epoch.
        normalisation: what is done to raw inputs.
        global_batch: samples of a batch over all data ranks; the last one of an epoch may be shorter.
        data_index: this rank's coordinate on the data axis.
        data_size: ranks along the data axis.
        micro_batches: pieces that each rank's part is cut into.
        max_shift: largest random shift of images, pixels; 0: none.
        seed: `train.seed`, which keys the shifts.
        want_inputs: whether batches carry inputs (the first stage).
        want_labels: whether batches carry labels (the last stage).

    Raises:
        DataError: `order` belongs to another number of samples, or the data set is empty.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: SampleOrder,
        normalisation: Normalisation,
        *,
        global_batch: int,
        data_index: int = 0,
        data_size: int = 1,
        micro_batches: int = 1,
        max_shift: int = 0,
        seed: int = 0,
        want_inputs: bool = True,
        want_labels: bool = True,
    ) -> None:
        if order.num_samples != dataset.num_samples or dataset.num_samples == 0:
            raise DataError(
                f"{dataset.name}: expected at least one sample and an order of as many, found {dataset.num_samples} samples and an "
                f"order of {order.num_samples}: give more data, or a smaller data.test_fraction"
            )
        small = want_inputs and 4 * dataset.num_samples * math.prod(dataset.input_shape) <= _CACHE_NBYTES
        self._dataset = load_into_memory(dataset) if small else dataset
        self._order = order
        self._normalisation = normalisation
        self._global_batch = global_batch
        self._data_index, self._data_size = data_index, data_size
        self._micro_batches = micro_batches
        self._max_shift, self._seed = max_shift, seed
        self._want_inputs, self._want_labels = want_inputs, want_labels
        self.steps_per_epoch = -(-dataset.num_samples // global_batch)

    def locate(self, step: int) -> tuple[int, int]:
        """Return (epoch, position) of the batch of a step counted from 0 over all epochs. Local."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        return epoch, step_of_epoch * self._global_batch

    def first_row(self, num_global: int) -> int:
        """Return which row of a batch of `num_global` samples is this rank's first. Local."""
        return split_range(num_global, self._data_size, self._data_index)[0]

    def plan(self, epoch: int, position: int) -> BatchPlan:
        """Return which samples this rank takes from the batch that starts at a position. Local.

        Args:
            epoch: pass over the data set, from 0.
            position: place of the batch's first sample in the epoch, from 0; a multiple of the
                global batch unless a run was resumed with another one.

        Raises:
            DataError: the epoch has no such position.
        """
        num_samples = self._order.num_samples
        self._order.check_positions(position, 1)
        num_global = min(self._global_batch, num_samples - position)
        start, stop = split_range(num_global, self._data_size, self._data_index)
        indices = self._order.indices(epoch, position + start, stop - start)
        cuts = [split_range(stop - start, self._micro_batches, i) for i in range(self._micro_batches)]
        end = position + num_global
        following = (epoch, end) if end < num_samples else (epoch + 1, 0)
        return BatchPlan(epoch, position, num_global, [indices[slice(*cut)] for cut in cuts], following)

    def batch(self, epoch: int, position: int) -> Batch:
        """Return the arrays of this rank's part of the batch that starts at a position. Local.

        Raises:
            DataError: the epoch has no such position, or the samples cannot be read.
        """
        plan = self.plan(epoch, position)
        indices = np.concatenate(plan.indices)
        sizes = [len(piece) for piece in plan.indices]
        ends = np.cumsum(sizes)[:-1]
        inputs = np.split(self._read_inputs(epoch, indices), ends) if self._want_inputs else []
        labels = np.split(self._dataset.read_labels(indices), ends) if self._want_labels else []
        return Batch(epoch, position, plan.num_global, sizes, inputs, labels, plan.following)

    def _read_inputs(self, epoch: int, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        inputs = self._dataset.read_inputs(indices)
        if self._max_shift:
            inputs = shift_images(inputs, self._max_shift, self._seed, epoch, indices)
        return self._normalisation.apply(inputs, out=inputs)
