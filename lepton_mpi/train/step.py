"""One training step."""

from __future__ import annotations

import math
import socket
from dataclasses import dataclass

import numpy as np

from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.waiting import wait
from lepton_mpi.config.schema import OptimizerConfig
from lepton_mpi.data.loader import Batch, Loader
from lepton_mpi.errors import NonFiniteError
from lepton_mpi.ops.sum_of_squares import sum_of_squares
from lepton_mpi.optim.clipping import clip_scale
from lepton_mpi.optim.optimizer import Optimizer
from lepton_mpi.optim.schedule import learning_rate
from lepton_mpi.parallel.gradient_exchange import GradientExchange
from lepton_mpi.parallel.pipeline import LocalLoss, MicroBatches
from lepton_mpi.train.network import Network
from lepton_mpi.train.state import TrainState


@dataclass(frozen=True)
class Training:
    """What a step works with.

    Attributes:
        network: the model on its grid.
        exchange: sums gradients over the data axis.
        optimizer: updates slices.
        optimizer_config: learning rate, schedule and clipping.
        loader: batches of this data rank.
        num_steps: steps of the whole run.
        decay_step: step at which the learning rate has fallen to its end.
    """

    network: Network
    exchange: GradientExchange
    optimizer: Optimizer
    optimizer_config: OptimizerConfig
    loader: Loader
    num_steps: int
    decay_step: int


@dataclass(frozen=True)
class StepMetrics:
    """What a step found, equal on all ranks.

    Attributes:
        loss: mean over the batch.
        accuracy: share of the batch that the model got right before the update.
        grad_norm: global norm of the gradient, before clipping.
        lr: learning rate.
        num_samples: samples of the batch.
        stop: whether a rank was asked to stop.
    """

    loss: float
    accuracy: float
    grad_norm: float
    lr: float
    num_samples: int
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
    batch = training.loader.batch(state.epoch, state.position)  # local; depends on (seed, epoch, position) alone
    network.memory.zero_grad()
    with np.errstate(over="ignore", invalid="ignore"):  # not a warning from each rank: the vote tells of it once, for all
        local = network.pipeline.train(to_device(batch, network.xp), exchange.layer_done(2))  # model axis; starts buckets
    exchange.finish()  # data axis: the sum of the gradients, on the slices this rank owns
    vote = _vote(training, state, local, stop_requested, batch.num_global)  # whole grid
    lr = learning_rate(training.optimizer_config, state.step, training.decay_step)
    _update(training, lr, clip_scale(vote.grad_norm, training.optimizer_config.clip_norm), state.step + 1)
    exchange.publish()  # data axis: everyone sees the new weights
    metrics = StepMetrics(vote.loss, vote.num_correct / batch.num_global, vote.grad_norm, lr, batch.num_global, vote.stop)
    return state.advance(batch.following), metrics


def to_device(batch: Batch, xp: object) -> MicroBatches:
    """Return a batch as flat arrays where the model lives. Local."""
    move = getattr(xp, "asarray")  # noqa: B009 - xp is numpy or cupy
    inputs = [move(x.reshape(len(x), math.prod(x.shape[1:]))) for x in batch.inputs]  # -1 would fail where a batch is empty
    labels = [move(y) for y in batch.labels]
    return MicroBatches(batch.sizes, inputs, labels, 1.0 / batch.num_global)


@dataclass(frozen=True)
class _Vote:
    """Sums over all ranks that every rank needs before the update."""

    loss: float
    num_correct: int
    grad_norm: float
    stop: bool


@collective("grid.world")
def _vote(training: Training, state: TrainState, local: LocalLoss, stop_requested: bool, num_samples: int) -> _Vote:
    """Bring loss, norm, and the wish to stop together in one message.

    Collective over grid.world.
    """
    grid, grad = training.network.grid, training.network.memory.grads
    own = grad[grid.data_in_node.Get_rank()]
    square = sum(sum_of_squares(own[s.start : s.stop]) for s in training.exchange.owned_slices if s.counts)
    counts = grid.shard_index == 0  # the shards of the last stage all compute the same loss
    mine = np.array([local.loss if counts else 0.0, local.num_correct if counts else 0, square, stop_requested])
    votes = np.empty((grid.size, mine.size))
    wait(grid.world.Iallgather(mine, votes), "the losses and norms")
    finite_loss, finite_square = np.isfinite(votes[:, 0]), np.isfinite(votes[:, 2])
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
    loss, num_correct, norm_square, stop = votes.sum(axis=0)  # the same order, so the same bits, on all ranks
    return _Vote(float(loss), int(num_correct), math.sqrt(norm_square), stop > 0)


def _update(training: Training, lr: float, grad_scale: float, step: int) -> None:
    """Update the slices that this rank owns. Local."""
    memory, grid = training.network.memory, training.network.grid
    grad = memory.grads[grid.data_in_node.Get_rank()]
    for s in training.exchange.owned_slices:
        here = slice(s.start, s.stop)
        slots = {name: array[here] for name, array in memory.slots.items()}
        training.optimizer.update(memory.values[here], grad[here], slots, lr, grad_scale, s.decay, step)
