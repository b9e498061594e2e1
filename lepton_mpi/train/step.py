"""One training step."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.waiting import wait
from lepton_mpi.config.schema import OptimizerConfig
from lepton_mpi.data.loader import Batch
from lepton_mpi.data.prefetch import BatchSource
from lepton_mpi.errors import NonFiniteError
from lepton_mpi.nn.loss import Loss
from lepton_mpi.ops.sum_of_squares import sum_of_squares
from lepton_mpi.optim.clipping import clip_scale
from lepton_mpi.optim.groups import ParameterGroup
from lepton_mpi.optim.optimizer import Optimizer
from lepton_mpi.optim.schedule import learning_rate
from lepton_mpi.parallel.exchange import Exchange
from lepton_mpi.parallel.pipeline import LocalLoss, MicroBatches
from lepton_mpi.parallel.stage import CompleteFrom
from lepton_mpi.train.network import Network
from lepton_mpi.train.objective import labels_a_sample
from lepton_mpi.train.state import TrainState
from lepton_mpi.train.update import SliceUpdater


@dataclass(frozen=True)
class Training:
    """What a step works with.

    Attributes:
        network: the model on its grid.
        exchange: sums gradients over the data axis.
        optimizer: updates slices.
        optimizer_config: learning rate, schedule and clipping.
        groups: how each parameter is updated, by name.
        loss: the end of the model.
        ema_decay: decay of the moving average of the weights; 0: none is kept.
        loader: batches of this data rank.
        num_steps: steps of the whole run.
        decay_step: step at which the learning rate has fallen to its end.
        warmup_steps: steps whose sums travel in nearly full precision, see `train.compression`.
    """

    network: Network
    exchange: Exchange
    optimizer: Optimizer
    optimizer_config: OptimizerConfig
    groups: Mapping[str, ParameterGroup]
    loss: Loss
    ema_decay: float
    loader: BatchSource
    num_steps: int
    decay_step: int
    warmup_steps: int = 0


@dataclass(frozen=True)
class StepMetrics:
    """What a step found, equal on all ranks.

    Attributes:
        loss: mean over the labels of the batch.
        accuracy: share of the labels that the model got right before the update; nan where that has no meaning.
        grad_norm: global norm of the gradient, before clipping.
        lr: learning rate.
        num_samples: samples of the batch.
        data_wait_s: seconds that the rank that waited longest for its part of the batch waited.
        stop: whether a rank was asked to stop.
    """

    loss: float
    accuracy: float
    grad_norm: float
    lr: float
    num_samples: int
    data_wait_s: float
    stop: bool


@collective("grid.world")
def train_step(training: Training, state: TrainState, stop_requested: bool) -> tuple[TrainState, StepMetrics]:
    """Do one step: forward, backward, exchange, update.

    Collective over grid.world.

    Args:
        training: what to work with.
        state: where the run is.
        stop_requested: whether this rank was asked to stop; all learn of it.

    Returns:
        The state after the step, and what the step found.

    Raises:
        NonFiniteError: loss or gradient is NaN or infinite, on all ranks alike; weights are as before the step.
    """
    network, exchange = training.network, training.exchange
    begin = time.perf_counter()
    batch = training.loader.batch(state.epoch, state.position)  # local; depends on (seed, epoch, position) alone
    data_wait_s = time.perf_counter() - begin
    owned = exchange.owned_slices
    exact = bool(network.totals)
    updater = SliceUpdater(network.grid, network.memory, owned, training.optimizer, training.groups, training.ema_decay, exact)
    exchange.warming = state.step < training.warmup_steps
    exchange.begin_step(state.step)  # data axis, where scales of gradients are made
    exchange.outgoing = updater.outgoing(state.step + 1)
    # A mean over the labels, if they all count alike; the vote tells their true weight, and the update then corrects for it.
    usual_weight = batch.num_global * labels_a_sample(network.model)
    local = _make_gradients(training, batch, state.step, 1.0 / usual_weight)
    while network.totals and not network.totals.settle():  # whole grid: the units of exact sums did not fit these gradients
        local = _make_gradients(training, batch, state.step, 1.0 / usual_weight)
    network.memory.settle()  # the vote then tells every rank that nobody still reads the old state
    vote = _vote(training, state, batch, local, stop_requested, usual_weight, data_wait_s)  # whole grid
    lr = learning_rate(training.optimizer_config, state.step, training.decay_step)
    clip = clip_scale(vote.grad_norm, training.optimizer_config.clip_norm)
    updater.update(lr, vote.grad_scale * clip, state.step + 1)  # whole grid, where it needs norms of whole parameters
    exchange.publish()  # data axis: everyone sees the new weights
    metrics = StepMetrics(vote.loss, vote.accuracy, vote.grad_norm, lr, batch.num_global, vote.data_wait_s, vote.stop)
    return state.advance(batch.following), metrics


@collective("grid.world")
def _make_gradients(training: Training, batch: Batch, step: int, factor: float) -> LocalLoss:
    """Bring the sums of the gradients of a batch to the slices that this rank owns.

    Collective over grid.world.
    """
    network, exchange = training.network, training.exchange
    network.memory.zero_grad()
    with np.errstate(over="ignore", invalid="ignore"):  # not a warning from each rank: the vote tells of it once, for all
        moved = to_device(batch, network.xp, step, together=network.model.batch_statistics)
        starts = CompleteFrom(network.pipeline.layer_starts, len(moved.sizes), exchange.start_from)
        local = network.pipeline.train(moved, training.loss, factor, starts)  # model axis; starts buckets
    network.shared_gradients.add_up()  # stages that hold the same parameter
    exchange.finish()  # data axis: the sum of the gradients, on the slices this rank owns
    return local


def to_device(batch: Batch, xp: Any, step: int = 0, together: bool = False) -> MicroBatches:
    """Return a batch as arrays where the model lives. Local.

    Args:
        batch: this rank's part of it.
        xp: numpy or cupy.
        step: number of the training step.
        together: make one micro-batch of a rank's pieces, if the batch is cut into pieces: some layers have to see all of them.
    """
    inputs = [xp.asarray(x) for x in batch.inputs]
    labels = [xp.asarray(y) for y in batch.labels]
    if not (together and batch.num_pieces):
        return MicroBatches(batch.sizes, batch.first_rows, inputs, labels, batch.num_global, step)
    first, last = batch.own_pieces
    pieces = tuple(batch.sizes) if last > first else ()
    x, y = ([xp.concatenate(parts)] if parts else [] for parts in (inputs, labels))
    return MicroBatches([sum(pieces)], batch.first_rows[:1], x, y, batch.num_global, step, pieces, batch.num_pieces)


@dataclass(frozen=True)
class _Vote:
    """What every rank must know before the update."""

    loss: float
    accuracy: float
    grad_norm: float
    grad_scale: float
    data_wait_s: float
    stop: bool


def _by_piece(sums: Sequence[float], batch: Batch) -> list[float]:
    """Return this rank's sums at the places of its pieces of the batch, or their sum where there are no pieces."""
    if not batch.num_pieces:
        return [sum(sums)]
    first, last = batch.own_pieces
    places = [0.0] * batch.num_pieces
    places[first:last] = sums[: last - first] or [0.0] * (last - first)  # other stages than the last have no losses
    return places


@collective("grid.world")
def _vote(
    training: Training,
    state: TrainState,
    batch: Batch,
    local: LocalLoss,
    stop_requested: bool,
    usual_weight: int,
    data_wait_s: float,
) -> _Vote:
    """Bring loss, norm, and the wish to stop together in one message.

    Collective over grid.world.
    """
    network, grid = training.network, training.network.grid
    own = network.memory.grads[grid.data_in_node.Get_rank()]
    square = square_rest = 0.0
    for s in training.exchange.owned_slices:
        if s.counts and s.spec.role == "weight" and training.groups[s.spec.name].trained:
            gradient = own[s.start : s.stop]
            high, rest = network.totals.squares(gradient) if network.totals else (sum_of_squares(gradient), 0.0)
            square, square_rest = square + high, square_rest + rest
    counts = grid.shard_index == 0  # the shards of the last stage all compute the same loss
    # Where a batch is cut into pieces each has a place of its own, so that their losses are added in one order on every grid.
    losses, weights = _by_piece(local.losses, batch), _by_piece(local.weights, batch)
    sums = (*losses, *weights, local.num_correct, local.num_counted) if counts else (0.0,) * (2 * len(losses) + 2)
    mine = np.array([*sums, square, square_rest, stop_requested, data_wait_s], np.float64)
    votes = np.empty((grid.size, mine.size))
    wait(grid.world.Iallgather(mine, votes), "the losses and norms")
    finite_loss, finite_square = np.isfinite(votes[:, : len(losses)]).all(axis=1), np.isfinite(votes[:, -4])
    if not (finite_loss.all() and finite_square.all()):
        # The sum has spread a rank's NaN to whoever owns slices of the gradient, so a loss tells better whose it was.
        what, finite = ("gradient", finite_square) if finite_loss.all() else ("loss", finite_loss)
        rank = int(np.argmin(finite))
        host = grid.world.bcast(socket.gethostname(), root=rank)
        raise NonFiniteError(
            f"the {what} became NaN or infinite at step {state.step} on rank {rank} ({host}), samples "
            f"{state.position}..{state.position + batch.num_global} of epoch {state.epoch}: look for NaN in the data, lower "
            "optimizer.lr, or set optimizer.clip_norm. The weights are those of the step before"
        )
    totals = votes.sum(axis=0)  # in the same order, so with the same bits, on all ranks
    loss, weight = totals[: len(losses)].sum(), totals[len(losses) : -6].sum()
    num_correct, num_counted, high, rest, stop, _ = totals[-6:]
    norm_square = high + rest
    longest_wait_s = float(votes[:, -1].max())
    if weight <= 0.0:  # every label of the batch was one to ignore: nothing to learn from it
        return _Vote(0.0, math.nan, 0.0, 0.0, longest_wait_s, stop > 0)
    grad_scale = usual_weight / weight
    accuracy = num_correct / num_counted if num_counted else math.nan
    return _Vote(loss / weight, accuracy, math.sqrt(norm_square) * grad_scale, grad_scale, longest_wait_s, stop > 0)
