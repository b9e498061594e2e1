"""What `python -m lepton_mpi.train` does once its configuration is read."""

from __future__ import annotations

import logging
import math
import socket
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import lepton_mpi
from lepton_mpi.checkpoint.drivers import choose_driver
from lepton_mpi.checkpoint.resume import find_resumable
from lepton_mpi.comm.contract import collective
from lepton_mpi.config.schema import Config
from lepton_mpi.config.toml_file import format_toml
from lepton_mpi.data.splits import open_datasets
from lepton_mpi.monitor.banner import BannerFacts, format_banner
from lepton_mpi.monitor.run_folder import RunFolder
from lepton_mpi.monitor.summary import GridSizes, Status
from lepton_mpi.runtime.device import describe_device
from lepton_mpi.runtime.failure import FailureReport, PeerWatch
from lepton_mpi.runtime.logs import start_logging
from lepton_mpi.runtime.mpi import MPI, mpi_library
from lepton_mpi.runtime.stop_signals import StopSignals
from lepton_mpi.train.averaging import start_average
from lepton_mpi.train.compression import late_codec
from lepton_mpi.train.folder import BEST_MODEL, open_folder
from lepton_mpi.train.loop import Outcome, train
from lepton_mpi.train.objective import data_needs
from lepton_mpi.train.resume import load
from lepton_mpi.train.run import Run, build_run
from lepton_mpi.train.state import TrainState
from lepton_mpi.train.view import RunView, summarise

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
        path, lock = open_folder(comm, config)
        report.set_folder(path)
        folder = RunFolder(path) if comm.Get_rank() == 0 else None
        with (
            lock or nullcontext(),
            start_logging(comm.Get_rank(), comm.Get_size(), path, config.run.log_level),
            PeerWatch(run.network.grid.node, comm.Get_rank(), report),
        ):
            view = RunView(config, folder, lock, report)
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
    view: RunView,
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
            folder.write_summary(summarise(run, begun, "running", "", 0.0))  # what a killed job leaves
        view.begin(_banner(run, path, num_threads, num_hosts, driver), config, state, run.training.num_steps, newest)
        for name, reason in distrusted.items():
            view.warn(f"CHECKPOINT {name} IS DAMAGED and was passed over for an older one: {reason}")
        late = late_codec(run.config.reduce, run.training.warmup_steps, run.training.num_steps)
        if late and run.network.memory.ownership.num_nodes > 1:
            view.warn(late)
    ready_s = time.monotonic() - begin
    _log.info("starting at step %d of %d, ready after %.2f s", state.step, run.training.num_steps, ready_s)
    best = path / BEST_MODEL if run.config.checkpoint.keep_best else None
    outcome = train(run, state, checkpoints, lambda: bool(stop.requested), view, best, distrusted)
    digest = run.network.weights.sha256()
    if folder is not None:
        status: Status = "interrupted" if outcome.stopped else "finished"
        summary = summarise(run, outcome, status, digest, time.monotonic() - begin)
        if not folder.is_finished(summary.step):  # loss and speed of a finished run are those of the start that finished it
            folder.write_summary(summary)
        view.end(summary, path, stop.requested)
    return 0


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
