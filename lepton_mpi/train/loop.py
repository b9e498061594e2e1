"""The training loop, in full view."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from lepton_mpi.comm.contract import collective
from lepton_mpi.data.prefetch import Prefetcher
from lepton_mpi.data.streams.loader import StreamLoader
from lepton_mpi.errors import NonFiniteError
from lepton_mpi.monitor.metrics import Evaluation
from lepton_mpi.monitor.throughput import Throughput
from lepton_mpi.train.inference import evaluate
from lepton_mpi.train.objective import make_metrics
from lepton_mpi.train.replicas import ReplicaCheck
from lepton_mpi.train.run import Run
from lepton_mpi.train.saving import SaveWatcher, Saving
from lepton_mpi.train.state import TrainState
from lepton_mpi.train.step import StepMetrics, train_step


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        state: where it got to.
        stopped: whether it was asked to stop before its last step.
        early: whether it ended early, since its evaluations were no longer better.
        train_loss: mean loss over the samples of the last (maybe partial) epoch; nan if no step was done.
        test: evaluation on the test set, or None without one.
        samples_per_second: over all steps, evaluation and checkpoints left out.
        data_wait_share: share of that time in which training waited for batches.
        wall_s: seconds from the first step to the last.
    """

    state: TrainState
    stopped: bool
    early: bool
    train_loss: float
    test: Evaluation | None
    samples_per_second: float
    data_wait_share: float
    wall_s: float


@dataclass(frozen=True)
class EpochMetrics:
    """What an epoch found, equal on all ranks.

    Attributes:
        epoch: its number, from 1.
        loss, accuracy: means over its samples, before each update; accuracy is nan where it has no meaning.
        test: evaluation at its end, if there was one.
        samples_per_second: speed at its end.
    """

    epoch: int
    loss: float
    accuracy: float
    test: Evaluation | None
    samples_per_second: float

    def describe(self) -> str:
        """Return one line for people to read. Local."""
        parts = [f"loss {self.loss:.4f}"]
        if math.isfinite(self.accuracy):
            parts.append(f"train accuracy {self.accuracy:.4f}")
        if self.test is not None:
            name, value = self.test.main
            parts.append(f"test {name} {value:.4f}")
        return f"epoch {self.epoch}: {', '.join(parts)}, {self.samples_per_second:.0f} samples/s"


class Watcher(SaveWatcher):
    """What sees a run go by; this one looks away. Local: a watcher must not call collectives."""

    def step_done(self, state: TrainState, metrics: StepMetrics, samples_per_second: float) -> None:
        """Learn of a step."""

    def evaluation_done(self, found: Evaluation, state: TrainState) -> None:
        """Learn of an evaluation; one at the end of an epoch comes before the epoch's own message."""

    def epoch_done(self, metrics: EpochMetrics, state: TrainState) -> None:
        """Learn of an epoch."""


@collective("grid.world")
def train(
    run: Run,
    state: TrainState,
    checkpoints: Path | None,
    stop_requested: Callable[[], bool],
    watcher: Watcher,
    best: Path | None = None,
    distrusted: Collection[str] = (),
) -> Outcome:
    """Train from a state to the last step of a run.

    Collective over grid.world.

    Args:
        run: the run.
        state: where to begin.
        checkpoints: folder for checkpoints; None: none are written.
        stop_requested: asked before each step whether this rank was told to stop.
        watcher: told of steps, epochs and checkpoints.
        best: folder for the checkpoint of the best evaluation; None: it is not kept.
        distrusted: names of checkpoints that were found damaged and are not to be counted on.

    Raises:
        NonFiniteError: loss or gradient became NaN or infinite, on all ranks alike.
        SaveError: the end of the run could not be saved, on all ranks alike; or `checkpoint.required`, and a save failed.
        RankMismatchError: copies of weights or optimizer state differ, on all ranks alike.
    """
    saving = Saving(run, checkpoints, best, watcher, state.step, distrusted)
    try:
        outcome = _train(run, state, saving, stop_requested, watcher)
    except NonFiniteError:
        saving.drain()  # what was copied before is well
        saving.abandon()
        raise
    except BaseException:
        saving.abandon()
        raise
    saving.close()
    return outcome


@collective("grid.world")
def _train(run: Run, state: TrainState, saving: Saving, stop_requested: Callable[[], bool], watcher: Watcher) -> Outcome:
    """Do the steps of `train`. Collective over grid.world."""
    judge = _Judge(run)
    throughput, waited_s = Throughput(), 0.0
    test: Evaluation | None = None
    begin, first_step, stopped = time.monotonic(), state.step, False
    train_loss = math.nan
    replicas = ReplicaCheck(run.network, run.config.train.check_replicas_every)
    replicas.begin(state.step)
    stream = run.training.loader if isinstance(run.training.loader, StreamLoader) else None
    # All ranks wait together for what a stream brings, so that nothing of it can be ahead.
    with nullcontext(run.training.loader) if stream else Prefetcher(run.training.loader) as batches:
        training = replace(run.training, loader=batches)
        while state.step < training.num_steps and not stopped and not judge.has_lost_patience(state):
            if stream:
                with throughput.paused():
                    came = stream.await_batch(run.network.grid.world, state.position, stop_requested)
                if came != "ready":
                    stopped = came == "stopped"
                    break
            if state.position == 0:
                state = state.begin_epoch()
            epoch = state.epoch
            state, metrics = train_step(training, state, stop_requested())
            throughput.add(metrics.num_samples)
            state = state.note(metrics.num_samples, metrics.loss, metrics.accuracy)
            waited_s += metrics.data_wait_s
            train_loss, stopped = state.mean_loss, metrics.stop
            watcher.step_done(state, metrics, throughput.rate())
            with throughput.paused():
                replicas.step_done(state.step)  # before anything is kept
                epoch_ends = state.epoch != epoch
                test = None
                if run.test_loader and not stopped and judge.is_due(state, epoch_ends):
                    test = evaluate(run.network, run.test_loader).led_by(judge.metric)
                    state = judge.judge(state, test)
                    watcher.evaluation_done(test, state)
                if epoch_ends:
                    ended = EpochMetrics(state.epoch, state.mean_loss, state.mean_accuracy, test, throughput.rate())
                    watcher.epoch_done(ended, state)
                saving.after_step(state, test is not None and state.stale == 0)
    replicas.end(state.step)
    wall_s = time.monotonic() - begin
    saving.finish(state)
    early = judge.has_lost_patience(state)
    interrupted = stopped and state.step < run.training.num_steps and not early
    if test is None and run.test_loader and not interrupted:
        test = evaluate(run.network, run.test_loader).led_by(judge.metric)
        if state.step > first_step:
            state = judge.judge(state, test)
            if state.stale == 0:
                saving.keep_best(state)
    wait_share = waited_s / throughput.duration_s if throughput.duration_s else 0.0
    return Outcome(state, interrupted, early, train_loss, test, throughput.average(), wait_share, wall_s)


def _is_due(count: int, every: int) -> bool:
    """Return whether something that is done every so many steps or epochs, 0: never, is due after so many."""
    return every > 0 and count % every == 0


class _Judge:
    """Says when to evaluate, and watches the metric that early stopping and the best checkpoint go by. The same on all ranks."""

    def __init__(self, run: Run) -> None:
        self.metric, self._higher = make_metrics(run.network.model).choose(run.config.train.metric)
        self._config = run.config.train

    def is_due(self, state: TrainState, epoch_ends: bool) -> bool:
        """Return whether an evaluation is due after a step. Local."""
        at_epoch = epoch_ends and _is_due(state.epoch, self._config.evaluate_every_epochs)
        return at_epoch or _is_due(state.step, self._config.evaluate_every_steps)

    def judge(self, state: TrainState, test: Evaluation) -> TrainState:
        """Return the state with an evaluation taken note of. Local."""
        return state.judge(test.values[self.metric], self._higher)

    def has_lost_patience(self, state: TrainState) -> bool:
        """Return whether too many evaluations in a row were no better. Local."""
        return 0 < self._config.patience <= state.stale
