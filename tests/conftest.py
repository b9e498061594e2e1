"""How all tests run: a time limit that ends every rank, failures that no other rank waits for, and jobs of several ranks.

Nothing here imports MPI: tests that start `mpirun` themselves must not have initialised it.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

DEFAULT_TIMEOUT_S = 120.0
# How long a failed rank waits for the others to end the same test before it ends the job.
GRACE_S = 10.0
RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")


def launched_rank() -> int:
    """Return this process's rank as its launcher gives it, without MPI."""
    return next((int(os.environ[name]) for name in RANK_VARIABLES if os.environ.get(name, "").isdigit()), 0)


def running_mpi() -> Any | None:
    """Return mpi4py's MPI if this process has initialised it and is not alone, else None; never imports it."""
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is None or not mpi.Is_initialized() or mpi.Is_finalized() or mpi.COMM_WORLD.Get_size() == 1:
        return None
    return mpi


def end_all_ranks(message: str) -> None:
    """Write a message and all threads' stacks, then end every rank of the job."""
    os.write(STDERR, f"\n[rank {launched_rank()}] {message}\n".encode())
    faulthandler.dump_traceback(STDERR, all_threads=True)
    mpi = running_mpi()
    if mpi is not None:
        mpi.COMM_WORLD.Abort(1)
    os._exit(1)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Keep the real standard error, and let one rank alone print pytest's report."""
    global STDERR
    STDERR = os.dup(2)
    if launched_rank() > 0:
        config.get_terminal_writer()._file = open(os.devnull, "w")  # noqa: SIM115 (lives as long as the process)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Start MPI where pytest-mpi is in use: it asks for the number of ranks before each test."""
    if session.config.getoption("--with-mpi"):
        from lepton_mpi.runtime.mpi import start_mpi

        session.config.stash[MEETING] = start_mpi(several_threads=True).Dup()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Let a selection that leaves nothing of one folder succeed: `make test PYTEST_ARGS="-k name"` visits several."""
    if session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and session.config.option.keyword:
        session.exitstatus = pytest.ExitCode.OK


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Limit the time of a test, fixtures included, and end it together with the other ranks."""
    marker = item.get_closest_marker("timeout_s")
    timeout_s = float(marker.args[0]) if marker else DEFAULT_TIMEOUT_S
    timer = threading.Timer(timeout_s, end_all_ranks, [f"{item.nodeid} took longer than {timeout_s:g} s"])
    timer.daemon = True
    timer.start()
    # Needs no GIL: the last resort where a test blocks in C while holding it.
    faulthandler.dump_traceback_later(timeout_s + 15, exit=True, file=STDERR)
    try:
        result = yield
        meet_other_ranks(item)
    finally:
        timer.cancel()
        faulthandler.cancel_dump_traceback_later()
    return result


def meet_other_ranks(item: pytest.Item) -> None:
    """Wait until all ranks have ended a test; after a failure not for long, since they may wait for this rank."""
    if MEETING not in item.config.stash:
        return
    barrier = item.config.stash[MEETING].Ibarrier()
    failed = item.stash.get(FAILED, False)
    start_s = time.monotonic()
    while not barrier.Test():
        if failed and time.monotonic() - start_s > GRACE_S:
            end_all_ranks(f"{item.nodeid} failed here, and other ranks did not end it within {GRACE_S:g} s")
        time.sleep(0.0005)


MEETING = pytest.StashKey[Any]()
FAILED = pytest.StashKey[bool]()
STDERR = 2


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Print a failure of a rank at once, with the rank: the job may end before pytest's own report."""
    report = yield
    if report.failed:
        item.stash[FAILED] = True
        if running_mpi() is not None:
            text = f"\n[rank {launched_rank()}] FAILED {report.nodeid} ({report.when})\n{report.longreprtext}\n"
            os.write(STDERR, text.encode())
    return report


def kill_job(marker: str) -> None:
    """Kill every process whose environment carries the marker; ranks may have left their launcher's process group."""
    needle = marker.encode()
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if needle in environ.read_bytes():
                os.kill(int(environ.parent.name), signal.SIGKILL)
        except OSError:  # ended meanwhile, or another user's
            continue


@pytest.fixture
def mpirun() -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Run `mpirun -n num_ranks python *args` with a time limit; nothing of the job outlives the test.

    `mpirun(4, "-m", "lepton_mpi.train", "--train.steps", "2", timeout_s=60, env={...}, cwd=path)` returns
    the completed process with its text output. On timeout the test fails with the output so far.
    """
    marker = f"LEPTON_TEST_JOB={uuid.uuid4().hex}"

    def run(
        num_ranks: int,
        *args: object,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        env: dict[str, str] | None = None,
        cwd: Path | str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        launcher = Path(sys.executable).parent / "mpirun"
        command = [str(launcher) if launcher.exists() else "mpirun", "-n", str(num_ranks), sys.executable, *map(str, args)]
        name, value = marker.split("=")
        job = subprocess.Popen(
            command,
            env={**os.environ, **mpirun_variables(), **(env or {}), name: value},
            cwd=cwd,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            stdout, stderr = job.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            kill_job(marker)
            stdout, stderr = job.communicate()
            pytest.fail(f"{' '.join(command)} took longer than {timeout_s:g} s\nstdout:\n{stdout}\nstderr:\n{stderr}")
        return subprocess.CompletedProcess(command, job.returncode, stdout, stderr)

    yield run
    kill_job(marker)


def mpirun_variables() -> dict[str, str]:
    """Return what Open MPI needs to run as root and with more ranks than cores; other MPIs ignore it."""
    variables = {
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "OMPI_MCA_hwloc_base_binding_policy": "none",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "PRTE_MCA_hwloc_default_binding_policy": "none",
    }
    if os.geteuid() == 0:
        variables |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return variables
