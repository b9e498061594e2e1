"""What a run shows on rank 0, and the metrics and the summary that it leaves."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import final

from lepton_mpi.checkpoint.folder_lock import FolderLock
from lepton_mpi.config.schema import Config
from lepton_mpi.errors import LeptonError
from lepton_mpi.monitor.metrics import Evaluation
from lepton_mpi.monitor.progress import Progress, choose_progress
from lepton_mpi.monitor.run_folder import RunFolder
from lepton_mpi.monitor.summary import GridSizes, Status, Summary, collect_versions
from lepton_mpi.runtime.failure import FailureReport
from lepton_mpi.runtime.mpi import mpi_library
from lepton_mpi.train.loop import EpochMetrics, Outcome, Watcher
from lepton_mpi.train.run import Run
from lepton_mpi.train.state import TrainState
from lepton_mpi.train.step import StepMetrics

_log = logging.getLogger(__name__)


@final
class RunView(Watcher):
    """Shows a run on rank 0 and writes its metrics; on other ranks it only notes the step for messages."""

    def __init__(self, config: Config, folder: RunFolder | None, lock: FolderLock | None, report: FailureReport) -> None:
        self._folder, self._lock = folder, lock
        self._config_text = ""
        self._has_lost_metrics = False
        self._report = report
        kind = config.run.progress if folder is not None else "off"
        self._progress: Progress = choose_progress(kind, sys.stdout, config.run.progress_every_s)
        self._state = TrainState()
        self._loss = math.nan
        self._first_step = True
        self._begun = False

    def begin(self, banner: str, config: str, state: TrainState, num_steps: int, resumed: Path | None) -> None:
        """Show what the run is, and note its resolved configuration."""
        self._begun, self._state, self._config_text = True, state, config
        self._say(banner.rstrip("\n"))
        if resumed is not None:
            done = " (nothing left to do)" if state.step >= num_steps else ""
            self._say(f"resumed from {resumed.name}: step {state.step} of {num_steps}{done}")
        self._progress.start(state.step, num_steps)

    def step_done(self, state: TrainState, metrics: StepMetrics, samples_per_second: float) -> None:
        """Note the step, show it, and write its line of metrics."""
        self._report.step, self._state, self._loss = state.step, state, metrics.loss
        if self._folder is None:
            return
        if self._first_step:
            _log.info("first step done")
            self._first_step = False
        self._progress.update(state.step, metrics.loss, samples_per_second)
        self._append(
            {
                "step": state.step,
                "epoch": state.epoch,
                "loss": metrics.loss,
                "accuracy": metrics.accuracy,
                "grad_norm": metrics.grad_norm,
                "lr": metrics.lr,
                "samples_per_second": samples_per_second,
                "data_wait_s": metrics.data_wait_s,
            }
        )

    def evaluation_done(self, found: Evaluation, state: TrainState) -> None:
        """Write its metrics, and show the first of them."""
        if self._folder is None:
            return
        values = {f"test_{name}": value for name, value in found.values.items()}
        self._append({"step": state.step, "epoch": state.epoch, **values})
        if state.position:  # else the epoch has a line of its own
            name, value = found.main
            self._progress.note(f"step {state.step}: test {name} {value:.4f}")

    def epoch_done(self, metrics: EpochMetrics, state: TrainState) -> None:
        """Show one line for the epoch."""
        if self._folder is None:
            return
        self._progress.note(metrics.describe())

    def _append(self, record: Mapping[str, object]) -> None:
        """Write a line of metrics; where the disk is full training goes on without."""
        assert self._folder is not None
        try:
            self._folder.append_metrics(record)
        except LeptonError as error:
            if not self._has_lost_metrics:
                self._has_lost_metrics = True
                self._warn(f"{error}; training goes on, lines of metrics are missing from step {record['step']} on")

    def before_checkpoint(self, root: Path) -> None:
        """Make the folder anew if it was deleted, and see that it is still this job's."""
        if self._folder is None or self._lock is None:
            return
        if self._folder.restore():
            self._folder.write_config(self._config_text)
            self._warn(f"the run folder {self._folder.path} was deleted or emptied while training; it was made anew")
        self._lock.renew()

    def checkpoint_failed(self, message: str) -> None:
        """Say it where people look."""
        if self._folder is not None:
            self.warn(message)  # the log has it already

    def warn(self, message: str) -> None:
        """Say one line on standard output."""
        self._progress.note(f"warning: {message}")

    def _warn(self, message: str) -> None:
        """Say one line on standard output and in the log."""
        _log.warning("%s", message)
        self.warn(message)

    def end(self, summary: Summary, path: Path, signal: str) -> None:
        """Show the result."""
        self._progress.close()
        what = "finished"
        if summary.status == "interrupted":
            what = f"stopped on request ({signal or 'to another rank'}) at step {summary.step}"
        result = ""
        if summary.eval is not None:
            name, value = summary.eval.main
            result = f"test {name} {value:.4f}, "
        trained = ""
        if math.isfinite(summary.train_loss):  # it did a step
            trained = (
                f"train loss {summary.train_loss:.4f}, {summary.step} steps in {summary.wall_seconds:.1f} s, "
                f"{summary.samples_per_second:.0f} samples/s, "
            )
        self._say(f"{what}: {result}{trained}run folder {path}")

    def fail(self, run: Run, wall_s: float) -> None:
        """Write a summary that says where the run failed. Never raises: the failure itself is what counts.

        A start that was refused, since its model does not fit the folder's, leaves the summary of that run alone.
        """
        if self._folder is None or not self._begun:
            return
        outcome = Outcome(self._state, False, False, self._loss, None, 0.0, 0.0, wall_s)
        try:
            self._folder.write_summary(summarise(run, outcome, "failed", "", wall_s))
        except Exception:
            _log.exception("the summary of the failed run could not be written")

    def close(self) -> None:
        """End the display and the metrics file. May be called twice."""
        self._progress.close()
        if self._folder is not None:
            self._folder.close()

    def _say(self, text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def summarise(run: Run, outcome: Outcome, status: Status, digest: str, wall_s: float) -> Summary:
    """Return what summary.json says of a run. Local."""
    shape = run.network.grid.shape
    return Summary(
        status=status,
        step=outcome.state.step,
        epoch=outcome.state.epoch,
        train_loss=outcome.train_loss,
        eval=outcome.test,
        stopped_early=outcome.early,
        best=outcome.state.best,
        weights_sha256=digest,
        grid=GridSizes(shape.data, shape.stages, shape.shards),
        samples_per_second=outcome.samples_per_second,
        data_wait_share=outcome.data_wait_share,
        wall_seconds=wall_s,
        versions=collect_versions(mpi_library()),
    )
