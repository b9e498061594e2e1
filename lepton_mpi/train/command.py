"""What `python -m lepton_mpi.train` does once its configuration is read."""

from __future__ import annotations

import logging
import math
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import lepton_mpi
from lepton_mpi.checkpoint.commit import list_checkpoints, remove_unfinished
from lepton_mpi.checkpoint.drivers import choose_driver
from lepton_mpi.checkpoint.folder_lock import FolderLock
from lepton_mpi.checkpoint.resume import find_resumable
from lepton_mpi.comm.agreement import do_on_root
from lepton_mpi.comm.contract import collective
from lepton_mpi.config.schema import Config
from lepton_mpi.config.toml_file import format_toml
from lepton_mpi.data.splits import open_datasets
from lepton_mpi.errors import ConfigError, LeptonError
from lepton_mpi.monitor.banner import BannerFacts, format_banner
from lepton_mpi.monitor.metrics import Evaluation
from lepton_mpi.monitor.progress import Progress, choose_progress
from lepton_mpi.monitor.run_folder import RunFolder, claim_folder, default_run_name
from lepton_mpi.monitor.summary import GridSizes, Status, Summary, collect_versions
from lepton_mpi.runtime.device import describe_device
from lepton_mpi.runtime.failure import FailureReport, PeerWatch, failure_path
from lepton_mpi.runtime.logs import start_logging
from lepton_mpi.runtime.mpi import MPI, mpi_library
from lepton_mpi.runtime.stop_signals import StopSignals
from lepton_mpi.runtime.whole_file import remove_leftovers
from lepton_mpi.train.averaging import start_average
from lepton_mpi.train.loop import EpochMetrics, Outcome, Watcher, train
from lepton_mpi.train.objective import data_needs
from lepton_mpi.train.resume import load
from lepton_mpi.train.run import Run, build_run
from lepton_mpi.train.state import TrainState
from lepton_mpi.train.step import StepMetrics

# Folder of a run for the model of its best evaluation.
_BEST = "best"

_log = logging.getLogger(__name__)


@collective("comm")
def run_training(comm: MPI.Intracomm, config: Config, num_threads: int, report: FailureReport) -> int:
    """Train as configured and return the exit code.

    Collective over comm.

    Args:
        comm: all ranks.
        config: the checked configuration.
        num_threads: threads a rank, for the banner.
        report: where failures are said.

    Raises:
        LeptonError: anything that ends the run, on all ranks alike.
    """
    begin = time.monotonic()
    with StopSignals() as stop:
        splits = open_datasets(config.data, comm, data_needs(config.model))
        run = build_run(comm, config, splits)
        path, lock = _open_folder(comm, config)
        report.set_folder(path)
        folder = RunFolder(path) if comm.Get_rank() == 0 else None
        with (
            lock or nullcontext(),
            start_logging(comm.Get_rank(), comm.Get_size(), path, config.run.log_level),
            PeerWatch(run.network.grid.node, comm.Get_rank(), report),
        ):
            view = _View(config, folder, lock, report)
            try:
                code = _train(comm, run, path, folder, view, num_threads, stop, begin)
            except BaseException:
                view.fail(run, time.monotonic() - begin)
                raise
            finally:
                view.close()
            comm.Barrier()  # from here on ranks may end without being missed
    run.free()
    return code


@collective("comm")
def _train(
    comm: MPI.Intracomm,
    run: Run,
    path: Path,
    folder: RunFolder | None,
    view: _View,
    num_threads: int,
    stop: StopSignals,
    begin: float,
) -> int:
    """Resume, train, and write the summary. Collective over comm."""
    checkpoints = path / "checkpoints"
    state = TrainState()
    distrusted: dict[str, str] = {}
    newest = find_resumable(comm, checkpoints, _log, distrusted)
    if newest is not None:
        state, _ = load(run.network, newest, extras=run.extras)
    elif run.config.model.init:
        from lepton_mpi.train.initial_weights import load_weights  # brings the layers of all families that others know

        load_weights(run.network, run.config.model)
        start_average(run.network)
    num_hosts = len(set(comm.allgather(socket.gethostname())))
    driver = choose_driver(comm, run.config.checkpoint.driver)
    if folder is not None:
        folder.truncate_metrics(state.step)
        config = format_toml(_resolved(run))
        folder.write_config(config)
        if not folder.is_finished(run.training.num_steps):
            begun = Outcome(state, False, False, math.nan, None, 0.0, 0.0, 0.0)
            folder.write_summary(_summary(run, begun, "running", "", 0.0))  # what a killed job leaves
        view.begin(_banner(run, path, num_threads, num_hosts, driver), config, state, run.training.num_steps, newest)
        for name, reason in distrusted.items():
            view.warn(f"CHECKPOINT {name} IS DAMAGED and was passed over for an older one: {reason}")
    ready_s = time.monotonic() - begin
    _log.info("starting at step %d of %d, ready after %.2f s", state.step, run.training.num_steps, ready_s)
    best = path / _BEST if run.config.checkpoint.keep_best else None
    outcome = train(run, state, checkpoints, lambda: bool(stop.requested), view, best, distrusted)
    digest = run.network.weights.sha256()
    if folder is not None:
        status: Status = "interrupted" if outcome.stopped else "finished"
        summary = _summary(run, outcome, status, digest, time.monotonic() - begin)
        if not folder.is_finished(summary.step):  # loss and speed of a finished run are those of the start that finished it
            folder.write_summary(summary)
        view.end(summary, path, stop.requested)
    return 0


class _View(Watcher):
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
            self._folder.write_summary(_summary(run, outcome, "failed", "", wall_s))
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


@collective("comm")
def _open_folder(comm: MPI.Intracomm, config: Config) -> tuple[Path, FolderLock | None]:
    """Choose, make and lock the run folder on rank 0, for all, and return it, with the lock on rank 0.

    Collective over comm.

    Raises:
        ConfigError: the folder cannot be made, is in use, or must not be resumed; on all ranks alike.
    """
    locks: list[FolderLock] = []

    def make() -> Path:
        path = _choose_folder(config)
        RunFolder(path).close()
        lock = FolderLock(path)
        try:
            _clean_folder(path, config)
        except BaseException:
            lock.release()
            raise
        locks.append(lock)
        return path

    path = do_on_root(comm, make)
    return path, locks[0] if locks else None


def _clean_folder(path: Path, config: Config) -> None:
    """Remove what killed jobs left, in a folder that may be resumed. Local."""
    if config.run.fresh and list_checkpoints(path / "checkpoints"):
        raise ConfigError(
            f"run.fresh: the run folder {path} already holds checkpoints and would be resumed: name another run.dir, "
            "or move the folder away"
        )
    for folder in (path, path / _BEST):
        remove_unfinished(folder / "checkpoints")
        remove_leftovers(folder)
    failure_path(path).unlink(missing_ok=True)  # of an earlier run in this folder


def _choose_folder(config: Config) -> Path:
    if config.run.dir:
        return Path(config.run.dir)
    if config.run.name:
        return Path("runs") / config.run.name
    name = default_run_name(config.model.family, config.data.format, datetime.now(UTC))
    return claim_folder(Path("runs"), name)


def _resolved(run: Run) -> Config:
    """Return the configuration with what was chosen in the place of what was left open."""
    shape = run.network.grid.shape
    grid = replace(run.config.grid, data=shape.data, stages=shape.stages, shards=shape.shards)
    return replace(run.config, grid=grid)


def _banner(run: Run, path: Path, num_threads: int, num_hosts: int, driver: str) -> str:
    shape, model, config = run.network.grid.shape, run.network.model, run.config
    how = "parallel HDF5 (mpio)" if driver == "mpio" else "one HDF5 file, all ranks write at its offsets (direct)"
    if config.checkpoint.asynchronous and config.checkpoint.driver != "mpio":
        how = "one HDF5 file, written at its offsets while training goes on (direct)"
    facts = BannerFacts(
        version=lepton_mpi.__version__,
        grid=GridSizes(shape.data, shape.stages, shape.shards),
        num_ranks=shape.num_ranks,
        num_hosts=num_hosts,
        device=describe_device(run.network.xp),
        mpi=mpi_library(),
        num_threads=num_threads,
        model=model.summary or model.family,
        num_parameters=model.num_parameters,
        data=f"{config.data.path or config.data.format}, {run.num_train_samples} training samples",
        checkpoint_driver=how,
        run_folder=str(path),
    )
    return format_banner(facts)


def _summary(run: Run, outcome: Outcome, status: Status, digest: str, wall_s: float) -> Summary:
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
