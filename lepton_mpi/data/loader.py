"""Batches: which samples a rank takes at a position of an epoch, and their arrays.

A batch follows from (seed, epoch, position) alone. It is cut into micro-batches, contiguous parts, and each of them is dealt
to the ranks of the data axis alike; so a micro-batch has the same samples on every grid, which matters to layers and losses
that look at it as a whole. With fewer samples than parts the last parts are empty.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.data.augmentation import Augmentation
from lepton_mpi.data.dataset import Dataset, load_into_memory
from lepton_mpi.data.formats.tokens import TokenWindows
from lepton_mpi.data.normalisation import Normalisation
from lepton_mpi.data.sampler import SampleOrder
from lepton_mpi.errors import ConfigError, DataError
from lepton_mpi.models.family import InputKind
from lepton_mpi.runtime.ranges import split_range

# Data sets up to this size, as float32, are kept in memory: reading a few rows from a file costs
# far more than a step of a small model.
_CACHE_NBYTES = 64 << 20
EVALUATION = -1  # the epoch of everything that is drawn for an evaluation, so that its results repeat


class Preparation(Protocol):
    """Makes inputs and labels of a task from those of a data set.

    What it draws at random must follow from seed, epoch and sample number alone.
    """

    def prepare(
        self, inputs: NDArray[np.int64], labels: NDArray[Any], seed: int, epoch: int, indices: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Return the inputs and labels that the model gets. Local.

        Args:
            inputs: int64[B, ...], owned by the caller.
            labels: [B, ...], as the data set has them.
            seed: `train.seed`.
            epoch: pass over the data set; `EVALUATION` for an evaluation.
            indices: int64[B], number of each sample in the data set.
        """
        ...


@final
@dataclass(frozen=True)
class BatchPlan:
    """The samples of one data rank in one step.

    Attributes:
        epoch: pass over the data set.
        position: place of the batch's first sample in the epoch.
        num_global: samples of the batch over all data ranks.
        first_rows: place in the global batch of the first sample of each micro-batch of this rank; the others follow it.
        indices: sample numbers, one int64 array for each micro-batch, maybe empty.
        following: epoch and position of the next batch.
    """

    epoch: int
    position: int
    num_global: int
    first_rows: list[int]
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
        first_rows: place in the global batch of the first sample of each micro-batch of this rank; the others follow it.
        inputs: [size, *input_shape], float32 normalised values or int64 ids; an empty list if not wanted.
        labels: [size, *label_shape], int64 classes or float32 values, or [size, C] float32 mixes of classes; an empty list if
            not wanted.
        following: epoch and position of the next batch.
        own_pieces: first and last + 1 of the pieces that are this rank's micro-batches, see `BatchCut`.
        num_pieces: pieces of the whole batch; 0: it is not cut into pieces.
    """

    epoch: int
    position: int
    num_global: int
    sizes: list[int]
    first_rows: list[int]
    inputs: list[NDArray[Any]]
    labels: list[NDArray[Any]]
    following: tuple[int, int]
    own_pieces: tuple[int, int] = (0, 0)
    num_pieces: int = 0


@final
@dataclass(frozen=True)
class BatchCut:
    """How a batch is cut over micro-batches and data ranks.

    The batch is cut into micro-batches first and each of them over the data axis, so that a micro-batch holds the same samples on
    every grid. With `pieces` it is cut into that many pieces, or as many as it has samples, and these, in runs, over the data axis:
    each is a micro-batch of the rank that has it, with the same samples on every grid.

    Attributes:
        data_index: this rank's coordinate on the data axis.
        data_size: ranks along the data axis.
        micro_batches: micro-batches of a batch.
        pieces: pieces of a batch; 0: micro-batches are divided.
    """

    data_index: int = 0
    data_size: int = 1
    micro_batches: int = 1
    pieces: int = 0

    def num_pieces(self, num_global: int) -> int:
        """Return how many pieces a batch of so many samples has; 0: it is not cut into pieces. Local, pure."""
        return min(self.pieces, num_global)

    def own_pieces(self, num_global: int) -> tuple[int, int]:
        """Return first and last + 1 of this rank's pieces. Local, pure."""
        return split_range(self.num_pieces(num_global), self.data_size, self.data_index)

    def rows(self, num_global: int) -> list[tuple[int, int]]:
        """Return which rows of a batch this rank takes, (first, last + 1) of each of its micro-batches. Local, pure.

        A rank without any piece has one micro-batch without rows.
        """
        if self.pieces:
            num_pieces = self.num_pieces(num_global)
            own = [split_range(num_global, num_pieces, p) for p in range(*self.own_pieces(num_global))]
            return own or [(num_global, num_global)]
        rows = []
        for m in range(self.micro_batches):
            start, stop = split_range(num_global, self.micro_batches, m)
            first, last = split_range(stop - start, self.data_size, self.data_index)
            rows.append((start + first, start + last))
        return rows


@final
class Loader:
    """Cut epochs into batches, and read this rank's part of them.

    Args:
        dataset: the samples.
        order: which sample stands where in an epoch.
        normalisation: what is done to raw inputs that are values.
        global_batch: samples of a batch over all data ranks; the last one of an epoch may be shorter.
        cut: how batches are cut over micro-batches and ranks; None: not.
        augmentation: changes samples at random; None: nothing does.
        seed: `train.seed`, which keys the preparation.
        want_inputs: whether batches carry inputs (the first stage).
        want_labels: whether batches carry labels (the last stage).
        input_kind: "values" are changed at random and normalised; "ids" are exact integers, and left as they are.
        preparation: makes inputs and labels of the task from ids; None: they are taken as they are.

    Attributes:
        steps_per_epoch: batches of an epoch.
        input_shape: shape of one sample as the model gets it.

    Raises:
        ConfigError: a preparation for inputs that are values, or an augmentation for ids.
        DataError: `order` belongs to another number of samples, or the data set is empty.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: SampleOrder,
        normalisation: Normalisation,
        *,
        global_batch: int,
        cut: BatchCut | None = None,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        want_inputs: bool = True,
        want_labels: bool = True,
        input_kind: InputKind = "values",
        preparation: Preparation | None = None,
    ) -> None:
        if preparation is not None and input_kind != "ids":
            raise ConfigError(
                f"model.task: {type(preparation).__name__} works on ids, and the model family takes values: choose another"
            )
        if augmentation is not None and input_kind != "values":
            raise ConfigError("data.augment: it changes values, and the model family takes ids: leave it out")
        if order.num_samples != dataset.num_samples or dataset.num_samples == 0:
            raise DataError(
                f"{dataset.name}: expected at least one sample and an order of as many, found {dataset.num_samples} samples and an "
                f"order of {order.num_samples}: give more data, or a smaller data.test_fraction"
            )
        elements = dataset.num_samples * (math.prod(dataset.input_shape) + math.prod(dataset.label_shape))
        # Windows of a text are read fast, and would take the memory of the text twice.
        reads_inputs = want_inputs or (want_labels and preparation is not None)
        small = reads_inputs and not isinstance(dataset, TokenWindows) and 4 * elements <= _CACHE_NBYTES
        self._dataset = load_into_memory(dataset, ids=input_kind == "ids") if small else dataset
        self._order = order
        self._normalisation = normalisation
        self._global_batch = global_batch
        self._cut = cut or BatchCut()
        self._augmentation, self._seed = augmentation, seed
        self._want_inputs, self._want_labels = want_inputs, want_labels
        self._input_kind, self._preparation = input_kind, preparation
        self.steps_per_epoch = -(-dataset.num_samples // global_batch)
        self.input_shape = prepared_shape(dataset.input_shape, preparation)

    def locate(self, step: int) -> tuple[int, int]:
        """Return (epoch, position) of the batch of a step counted from 0 over all epochs. Local."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        return epoch, step_of_epoch * self._global_batch

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
        rows = self._cut.rows(num_global)
        first_rows = [first for first, _ in rows]
        positions = [np.arange(position + first, position + last) for first, last in rows]
        indices = self._order.at(epoch, np.concatenate(positions))
        pieces = np.split(indices, np.cumsum([len(piece) for piece in positions])[:-1])
        end = position + num_global
        following = (epoch, end) if end < num_samples else (epoch + 1, 0)
        return BatchPlan(epoch, position, num_global, first_rows, pieces, following)

    def batch(self, epoch: int, position: int) -> Batch:
        """Return the arrays of this rank's part of the batch that starts at a position. Local.

        Raises:
            DataError: the epoch has no such position, or the samples cannot be read.
        """
        plan = self.plan(epoch, position)
        sizes = [len(piece) for piece in plan.indices]
        ends = np.cumsum(sizes)[:-1]
        whole_inputs, whole_labels = self._read(epoch, np.concatenate(plan.indices))
        inputs = [] if whole_inputs is None else np.split(whole_inputs, ends)
        labels = [] if whole_labels is None else np.split(whole_labels, ends)
        own, num_pieces = self._cut.own_pieces(plan.num_global), self._cut.num_pieces(plan.num_global)
        return Batch(epoch, position, plan.num_global, sizes, plan.first_rows, inputs, labels, plan.following, own, num_pieces)

    def _read(self, epoch: int, indices: NDArray[np.int64]) -> tuple[NDArray[Any] | None, NDArray[Any] | None]:
        """Return inputs and labels of samples as the model takes them, each None if not wanted."""
        want_inputs, want_labels = self._want_inputs, self._want_labels
        if self._preparation is not None and (want_inputs or want_labels):
            # The labels may follow from the inputs, so that a stage which wants one of them reads both.
            ids, given = self._dataset.read_ids(indices), self._dataset.read_labels(indices)
            key_epoch = epoch if self._order.is_random else EVALUATION
            inputs, labels = self._preparation.prepare(ids, given, self._seed, key_epoch, indices)
            return inputs if want_inputs else None, labels if want_labels else None
        return (
            self._read_inputs(epoch, indices) if want_inputs else None,
            self._read_labels(epoch, indices) if want_labels else None,
        )

    def _read_inputs(self, epoch: int, indices: NDArray[np.int64]) -> NDArray[Any]:
        if self._input_kind == "ids":
            return self._dataset.read_ids(indices)
        if self._augmentation is not None:
            return self._augmentation.inputs(self._dataset.read_inputs, self._normalise, epoch, indices)
        return self._normalise(self._dataset.read_inputs(indices))

    def _read_labels(self, epoch: int, indices: NDArray[np.int64]) -> NDArray[Any]:
        if self._augmentation is not None:
            return self._augmentation.labels(self._dataset.read_labels, epoch, indices)
        return self._dataset.read_labels(indices)

    def _normalise(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._normalisation.apply(inputs, out=inputs)


def prepared_shape(input_shape: tuple[int, ...], preparation: Preparation | None) -> tuple[int, ...]:
    """Return the shape of one sample as a model gets it. Local.

    Args:
        input_shape: shape of one sample of the data set.
        preparation: what makes questions of samples, or None.
    """
    if preparation is None:
        return input_shape
    none = np.empty(0, np.int64)
    inputs, _ = preparation.prepare(np.empty((0, *input_shape), np.int64), none, 0, EVALUATION, none)
    return inputs.shape[1:]
