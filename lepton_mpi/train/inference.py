"""Run a network forward over a data set: evaluation and prediction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.waiting import wait
from lepton_mpi.data.dataset import Dataset
from lepton_mpi.data.loader import Loader
from lepton_mpi.data.normalisation import Normalisation
from lepton_mpi.data.sampler import SequentialSampler
from lepton_mpi.monitor.classification import ClassificationMetrics, classification_metrics, confusion_matrix
from lepton_mpi.ops.array_module import array_module
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.train.network import Network
from lepton_mpi.train.step import to_device

# Samples a data rank takes at a time: enough for efficient products, few enough for any memory.
_SAMPLES_PER_RANK = 512


def inference_loader(network: Network, dataset: Dataset, normalisation: Normalisation) -> Loader:
    """Return batches of a data set in order, cut for the pipeline of a network. Local."""
    shape, grid = network.grid.shape, network.grid
    return Loader(
        dataset,
        SequentialSampler(dataset.num_samples),
        normalisation,
        global_batch=_SAMPLES_PER_RANK * shape.data,
        data_index=grid.data_index,
        data_size=shape.data,
        micro_batches=2 * shape.stages if shape.stages > 1 else 1,
        want_inputs=grid.is_first_stage,
        want_labels=grid.is_last_stage,
    )


@collective("grid.world")
def evaluate(network: Network, loader: Loader) -> ClassificationMetrics:
    """Return how well a network classifies a labelled data set.

    Collective over grid.world. Counts are integers, so the result does not depend on the grid, but
    for samples whose two best classes are within rounding.

    Args:
        network: the network.
        loader: of `inference_loader`.
    """
    num_classes = network.model.num_classes
    confusion = np.zeros((num_classes, num_classes), np.int64)
    for piece in _forward(network, loader):
        confusion += confusion_matrix(piece.labels, piece.outputs.argmax(axis=1), num_classes)
    wait(network.grid.world.Iallreduce(MPI.IN_PLACE, confusion, MPI.SUM))
    return classification_metrics(confusion)


@collective("grid.world")
def predict(network: Network, loader: Loader) -> Iterator[NDArray[np.float32]]:
    """Yield the class probabilities of a data set in order, a batch at a time.

    Collective over grid.world.

    Args:
        network: the network.
        loader: of `inference_loader`.

    Yields:
        float32 [b, num_classes] on rank 0, [0, num_classes] elsewhere.
    """
    grid, num_classes = network.grid, network.model.num_classes
    for piece in _forward(network, loader):
        whole = np.zeros((piece.num_global, num_classes), np.float32)
        whole[piece.start : piece.start + len(piece.outputs)] = _softmax(piece.outputs)
        # Every row comes from one rank and is zero on the others, so the sum is exact.
        total = np.empty_like(whole) if grid.rank == 0 else None
        grid.world.Reduce(whole, total, MPI.SUM, root=0)
        yield np.empty((0, num_classes), np.float32) if total is None else total


@dataclass(frozen=True)
class _Piece:
    """What one rank knows of a batch; no rows but on the first shard of the last stage."""

    num_global: int
    start: int
    outputs: NDArray[np.float32]
    labels: NDArray[np.int64]


@collective("grid.model")
def _forward(network: Network, loader: Loader) -> Iterator[_Piece]:
    """Run all batches forward. Collective over grid.model."""
    grid, num_classes = network.grid, network.model.num_classes
    answers = grid.is_last_stage and grid.shard_index == 0
    position: tuple[int, int] = (0, 0)
    while position[0] == 0:
        batch = loader.batch(*position)
        moved = to_device(batch, network.xp)
        outputs = network.pipeline.infer(moved)
        rows = [_to_host(output) for output in outputs] if answers else []
        logits = np.concatenate(rows) if rows else np.empty((0, num_classes), np.float32)
        labels = np.concatenate(batch.labels) if answers else np.empty(0, np.int64)
        yield _Piece(batch.num_global, loader.first_row(batch.num_global), logits, labels)
        position = batch.following


def _to_host(x: Any) -> NDArray[np.float32]:
    xp = array_module(x)
    host: NDArray[np.float32] = x if xp is np else xp.asnumpy(x)
    return host


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True)) if len(logits) else logits
    probabilities: NDArray[np.float32] = shifted / shifted.sum(axis=1, keepdims=True)
    return probabilities
