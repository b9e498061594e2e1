"""Run a network forward over a data set: evaluation and prediction."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.waiting import wait
from lepton_mpi.data.dataset import Dataset
from lepton_mpi.data.loader import BatchCut, Loader, Preparation, prepared_shape
from lepton_mpi.data.normalisation import Normalisation
from lepton_mpi.data.sampler import SequentialSampler
from lepton_mpi.monitor.metrics import Evaluation, MetricSums, Rows
from lepton_mpi.ops.array_module import array_module
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.train.averaging import averaged_weights
from lepton_mpi.train.network import Network
from lepton_mpi.train.objective import make_metrics, to_predictions
from lepton_mpi.train.step import to_device

# Samples a data rank takes at a time: enough for efficient products, few enough for any memory, for which large
# activations are limited to 16 MiB.
_SAMPLES_PER_RANK = 512
_LARGEST_ACTIVATION = 4 << 20
# Pieces of a batch of which a rank has the outputs at one time, at least, where work is done piece by piece.
_PIECES_AT_A_TIME = 4


def inference_loader(
    network: Network,
    dataset: Dataset,
    normalisation: Normalisation,
    preparation: Preparation | None = None,
    global_batch: int = 0,
) -> Loader:
    """Return batches of a data set in order, cut for the pipeline of a network. Local.

    Args:
        network: the network.
        dataset: the samples.
        normalisation: what is done to their values.
        preparation: makes questions and answers of them, see `make_preparation`.
        global_batch: samples at a time; 0: `suitable_batch`.
    """
    shape, grid = network.grid.shape, network.grid
    asked = network.for_samples(prepared_shape(dataset.input_shape, preparation))
    return Loader(
        dataset,
        SequentialSampler(dataset.num_samples),
        normalisation,
        global_batch=global_batch or suitable_batch(asked),
        cut=BatchCut(grid.data_index, shape.data, 2 * shape.stages if shape.stages > 1 else 1, network.virtual.shards),
        input_kind=network.model.input_kind,
        preparation=preparation,
        want_inputs=wants_inputs(network),
        want_labels=grid.is_last_stage,
    )


def wants_inputs(network: Network) -> bool:
    """Return whether this rank needs the inputs: on the first stage, and everywhere for their padding. Local."""
    return network.grid.is_first_stage or network.model.pad_id is not None


def suitable_batch(network: Network) -> int:
    """Return how many samples the ranks together may take at a time. Local."""
    largest = max(math.prod(shape) for shapes in network.model.boundaries for shape in shapes)
    fitting = max(1, min(_SAMPLES_PER_RANK, _LARGEST_ACTIVATION // largest))
    if network.virtual.shards:  # the same on every grid
        return max(1, fitting // _PIECES_AT_A_TIME) * network.virtual.shards
    return fitting * network.grid.shape.data


@collective("grid.world")
def evaluate(network: Network, loader: Loader) -> Evaluation:
    """Return how well a network does its task on a data set.

    Collective over grid.world. Where a moving average of the weights is kept, it is what is evaluated. Counts are exact, so they do
    not depend on the grid, but for samples whose two best answers are within rounding; sums of losses agree to rounding.
    What is no function of counts and sums is computed on rank 0, from a row of numbers of each sample in order.

    Args:
        network: the network.
        loader: of `inference_loader`.
    """
    metrics, world = make_metrics(network.model), network.grid.world
    samples, parts = [np.empty(0, np.int64)], []
    with averaged_weights(network):
        for piece in _forward(network.for_samples(loader.input_shape), loader):
            if piece.outputs:
                samples.append(piece.position + piece.rows)
                parts += _add_apart(metrics, piece)
    wait(world.Iallreduce(MPI.IN_PLACE, metrics.totals, MPI.SUM))
    metrics.totals[metrics.real_totals] = _sum_in_order(world, parts, metrics.totals[metrics.real_totals].size)
    if not metrics.row_size:
        return metrics.evaluation(metrics.totals, metrics.rows)
    rows = _gather_rows(world, metrics.rows, np.concatenate(samples))
    found: Evaluation = world.bcast(metrics.evaluation(metrics.totals, rows) if world.Get_rank() == 0 else None, root=0)
    return found


def _add_apart(metrics: MetricSums, piece: _Piece) -> list[NDArray[np.float64]]:
    """Count the samples of a batch, and return the sums of real numbers over each micro-batch behind its first sample."""
    found, start, real = [], 0, metrics.real_totals
    for output in piece.outputs:
        stop = start + len(output)
        if len(output):
            metrics.totals[real] = 0.0
            metrics.add(output, None if piece.labels is None else piece.labels[start:stop])
            found.append(np.array([piece.position + piece.rows[start], *metrics.totals[real]]))
        start = stop
    metrics.totals[real] = 0.0
    return found


@collective("world")
def _sum_in_order(world: MPI.Intracomm, parts: list[NDArray[np.float64]], length: int) -> NDArray[np.float64]:
    """Return the sum of the parts of all ranks, added in the order of their first numbers. Collective over world."""
    counts = np.empty(world.Get_size(), np.int64)
    wait(world.Iallgather(np.array([len(parts)]), counts), "the numbers of sums")
    rows = np.empty((int(counts.sum()), 1 + length))
    own = np.array(parts).reshape(len(parts), 1 + length)
    wait(world.Iallgatherv(own, (rows, counts * (1 + length))), "the sums of an evaluation")
    ordered = rows[np.argsort(rows[:, 0], kind="stable"), 1:]
    return np.asarray(ordered.sum(axis=0))


@collective("world")
def _gather_rows(world: MPI.Intracomm, rows: Rows, samples: NDArray[np.int64]) -> Rows:
    """Return the rows of all ranks in the order of their samples on rank 0, none elsewhere. Collective over world."""
    counts = np.empty(world.Get_size(), np.int64)
    wait(world.Iallgather(np.array([len(samples)]), counts), "the numbers of samples")
    total = int(counts.sum()) if world.Get_rank() == 0 else 0
    all_rows, order = np.empty((total, rows.shape[1]), np.float32), np.empty(total, np.int64)
    wait(world.Igatherv(rows, (all_rows, counts * rows.shape[1])), "the scores")
    wait(world.Igatherv(samples, (order, counts)), "the numbers of the samples")
    return all_rows[np.argsort(order)]


@collective("grid.world")
def predict(network: Network, loader: Loader) -> Iterator[NDArray[np.float32]]:
    """Yield the predictions of a data set in order, a batch at a time.

    Collective over grid.world.

    Args:
        network: the network.
        loader: of `inference_loader`.

    Yields:
        float32 [b, *output_shape], probabilities where the task has any, on rank 0; [0, *output_shape] elsewhere.
    """
    network = network.for_samples(loader.input_shape)
    grid, shape = network.grid, network.model.output_shape
    for piece in _forward(network, loader):
        whole = np.zeros((piece.num_global, *shape), np.float32)
        if piece.outputs:
            whole[piece.rows] = to_predictions(network.model, np.concatenate(piece.outputs))
        # Every row comes from one rank and is zero on the others, so the sum is exact.
        total = np.empty_like(whole) if grid.rank == 0 else None
        grid.world.Reduce(whole, total, MPI.SUM, root=0)
        yield np.empty((0, *shape), np.float32) if total is None else total


@dataclass(frozen=True)
class _Piece:
    """What one rank knows of a batch: outputs of each micro-batch and labels, on the first shard of the last stage alone."""

    position: int
    num_global: int
    rows: NDArray[np.int64]
    outputs: Sequence[NDArray[np.float32]] = ()
    labels: NDArray[Any] | None = None


@collective("grid.model")
def _forward(network: Network, loader: Loader) -> Iterator[_Piece]:
    """Run all batches forward. Collective over grid.model."""
    answers = network.grid.is_last_stage and network.grid.shard_index == 0
    position: tuple[int, int] = (0, 0)
    while position[0] == 0:
        batch = loader.batch(*position)
        outputs = network.pipeline.infer(to_device(batch, network.xp))
        rows = np.concatenate([np.arange(first, first + n) for first, n in zip(batch.first_rows, batch.sizes, strict=True)])
        if answers:
            labels = np.concatenate(batch.labels) if batch.labels else None
            yield _Piece(batch.position, batch.num_global, rows, [_to_host(output) for output in outputs], labels)
        else:
            yield _Piece(batch.position, batch.num_global, rows)
        position = batch.following


def _to_host(x: Any) -> NDArray[np.float32]:
    xp = array_module(x)
    host: NDArray[np.float32] = x if xp is np else xp.asnumpy(x)
    return host
