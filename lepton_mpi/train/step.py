"""One training step."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Mapping
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
from lepton_mpi.parallel.gradient_exchange import GradientExchange
from lepton_mpi.parallel.pipeline import LocalLoss, MicroBatches
from lepton_mpi.train.averaging import EMA_SLOT
from lepton_mpi.train.network import Network
from lepton_mpi.train.objective import labels_a_sample
from lepton_mpi.train.state import TrainState


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
    """

    network: Network
    exchange: GradientExchange
    optimizer: Optimizer
    optimizer_config: OptimizerConfig
    groups: Mapping[str, ParameterGroup]
    loss: Loss
    ema_decay: float
    loader: BatchSource
    num_steps: int
    decay_step: int


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
    network.memory.zero_grad()
    # A mean over the labels, if they all count alike; the vote tells their true weight, and the update then corrects for it.
    usual_weight = batch.num_global * labels_a_sample(network.model)
    with np.errstate(over="ignore", invalid="ignore"):  # not a warning from each rank: the vote tells of it once, for all
        moved = to_device(batch, network.xp, state.step)
        local = network.pipeline.train(moved, training.loss, 1.0 / usual_weight, exchange.start_from)  # model axis; starts buckets
    network.shared_gradients.add_up()  # stages that hold the same parameter
    exchange.finish()  # data axis: the sum of the gradients, on the slices this rank owns
    vote = _vote(training, state, local, stop_requested, batch.num_global, usual_weight, data_wait_s)  # whole grid
    lr = learning_rate(training.optimizer_config, state.step, training.decay_step)
    clip = clip_scale(vote.grad_norm, training.optimizer_config.clip_norm)
    _update(training, lr, vote.grad_scale * clip, state.step + 1)
    exchange.publish()  # data axis: everyone sees the new weights
    metrics = StepMetrics(vote.loss, vote.accuracy, vote.grad_norm, lr, batch.num_global, vote.data_wait_s, vote.stop)
    return state.advance(batch.following), metrics


def to_device(batch: Batch, xp: Any, step: int = 0) -> MicroBatches:
    """Return a batch as arrays where the model lives. Local."""
    inputs = [xp.asarray(x) for x in batch.inputs]
    labels = [xp.asarray(y) for y in batch.labels]
    return MicroBatches(batch.sizes, batch.first_rows, inputs, labels, batch.num_global, step)


@dataclass(frozen=True)
class _Vote:
    """What every rank must know before the update."""

    loss: float
    accuracy: float
    grad_norm: float
    grad_scale: float
    data_wait_s: float
    stop: bool


@collective("grid.world")
def _vote(
    training: Training,
    state: TrainState,
    local: LocalLoss,
    stop_requested: bool,
    num_samples: int,
    usual_weight: int,
    data_wait_s: float,
) -> _Vote:
    """Bring loss, norm, and the wish to stop together in one message.

    Collective over grid.world.
    """
    grid, grad = training.network.grid, training.network.memory.grads
    own = grad[grid.data_in_node.Get_rank()]
    square = sum(
        sum_of_squares(own[s.start : s.stop])
        for s in training.exchange.owned_slices
        if s.counts and s.spec.role == "weight" and training.groups[s.spec.name].trained
    )
    counts = grid.shard_index == 0  # the shards of the last stage all compute the same loss
    sums = (local.loss, local.weight, local.num_correct, local.num_counted) if counts else (0.0, 0.0, 0, 0)
    mine = np.array([*sums, square, stop_requested, data_wait_s], np.float64)
    votes = np.empty((grid.size, mine.size))
    wait(grid.world.Iallgather(mine, votes), "the losses and norms")
    finite_loss, finite_square = np.isfinite(votes[:, 0]), np.isfinite(votes[:, 4])
    if not (finite_loss.all() and finite_square.all()):
        # The sum has spread a rank's NaN to whoever owns slices of the gradient, so a loss tells better whose it was.
        what, finite = ("gradient", finite_square) if finite_loss.all() else ("loss", finite_loss)
        rank = int(np.argmin(finite))
        host = grid.world.bcast(socket.gethostname(), root=rank)
        raise NonFiniteError(
            f"the {what} became NaN or infinite at step {state.step} on rank {rank} ({host}), samples "
            f"{state.position}..{state.position + num_samples} of epoch {state.epoch}: look for NaN in the data, lower "
            "optimizer.lr, or set optimizer.clip_norm. The weights are those of the step before"
        )
    loss, weight, num_correct, num_counted, norm_square, stop, _ = votes.sum(
        axis=0
    )  # the same order, so the same bits, on all ranks
    longest_wait_s = float(votes[:, -1].max())
    if weight <= 0.0:  # every label of the batch was one to ignore: nothing to learn from it
        return _Vote(0.0, math.nan, 0.0, 0.0, longest_wait_s, stop > 0)
    grad_scale = usual_weight / weight
    accuracy = num_correct / num_counted if num_counted else math.nan
    return _Vote(loss / weight, accuracy, math.sqrt(norm_square) * grad_scale, grad_scale, longest_wait_s, stop > 0)


def _update(training: Training, lr: float, grad_scale: float, step: int) -> None:
    """Update the slices that this rank owns. Local."""
    memory, grid = training.network.memory, training.network.grid
    grad = memory.grads[grid.data_in_node.Get_rank()]
    for s in training.exchange.owned_slices:
        here, group = slice(s.start, s.stop), training.groups[s.spec.name]
        values = memory.values[here]
        if group.trained and s.spec.role == "statistic":
            values += grad[here]
        elif group.trained:
            slots = {name: memory.slots[name][here] for name in training.optimizer.slot_names}
            training.optimizer.update(values, grad[here], slots, lr * group.lr_scale, grad_scale, group.weight_decay, step)
        if training.ema_decay:
            average = memory.slots[EMA_SLOT][here]
            average += np.float32(1.0 - training.ema_decay) * (values - average)
