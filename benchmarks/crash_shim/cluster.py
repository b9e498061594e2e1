"""Start jobs whose ranks run under the shim, and read what they left."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

HERE = Path(__file__).parent
SOURCE = HERE / "shim.c"
MAX_PROCESSES, MAX_PHASES = 64, 16
_HEAD = struct.Struct(f"<2i{MAX_PROCESSES}i")
_PROCESS = struct.Struct(f"<4i{MAX_PHASES}i")
# A job that takes longer hangs.
JOB_LIMIT_S = 60.0
# What the log of a run says when a save is through.
ANNOUNCED = re.compile(rb"checkpoint \S*(?<!/best)/checkpoints/step-(\d{9,})\n")
_LAUNCHER = ("OMPI_", "PMIX_", "PMI_", "PRTE_", "HYDRA_")


def compile_shim(folder: Path) -> Path:
    """Compile the shim with the machine's C compiler and return the library."""
    library = folder / "crash_shim.so"
    subprocess.run(["cc", "-O1", "-fPIC", "-shared", "-o", library, SOURCE, "-lpthread"], check=True)
    return library


def fast_folder() -> str | None:
    """Return a folder in memory, None if there is none."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def base_environment() -> dict[str, str]:
    """Return the environment of jobs: nothing of a launcher above, and the quickest start of Open MPI on one machine."""
    settings = {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "OMPI_MCA_btl": "self,sm",  # looking for networks takes a second
        "OMPI_MCA_pml": "ob1",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "OMPI_MCA_hwloc_base_binding_policy": "none",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "PRTE_MCA_hwloc_default_binding_policy": "none",
    }
    if os.geteuid() == 0:
        settings |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return {name: value for name, value in os.environ.items() if not name.startswith(_LAUNCHER)} | settings


@dataclass
class Ended:
    """A job that has ended.

    Attributes:
        code: exit code of mpirun; -1: it hung and was killed.
        killed: whether the shim killed somebody.
        calls: counted system calls of each process ("0", "1", "0h1") in each phase.
        report: what rank 0 said (see `job`).
        announced: newest step that this job's log announces as saved; -1: none.
        output: what it printed.
        alive: processes that were still there when mpirun had ended.
        duration_s: how long it took.
    """

    code: int
    killed: bool
    calls: dict[str, list[int]]
    report: list[dict[str, Any]]
    announced: int
    output: str
    alive: list[int] = field(default_factory=list)
    duration_s: float = 0.0


class Cluster:
    """Runs jobs of a fixed number of ranks, forked from one server. A context manager.

    Args:
        folder: for sockets and the compiled shim.
        num_ranks: of every job.
    """

    def __init__(self, folder: Path, num_ranks: int) -> None:
        self.folder, self.num_ranks = folder, num_ranks
        self.shim = compile_shim(folder)
        # Open MPI's own shared memory outlives ranks that are killed.
        self._memory = tempfile.TemporaryDirectory(prefix="crash-memory-", dir=fast_folder())
        self._environment = base_environment() | {"OMPI_MCA_btl_sm_backing_directory": self._memory.name}
        launcher = Path(sys.executable).parent / "mpirun"
        self._launcher = str(launcher) if launcher.exists() else "mpirun"
        # Unix sockets have short names only.
        self._sockets = tempfile.TemporaryDirectory(prefix="crash-")
        self._address = str(Path(self._sockets.name, "server"))
        paths = [*filter(None, [os.environ.get("PYTHONPATH")]), str(HERE.parent), str(HERE.parent.parent)]
        self._server = subprocess.Popen(
            [sys.executable, str(HERE / "server.py"), self._address, str(self.shim)],
            env=self._environment | {"LD_PRELOAD": str(self.shim), "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._server.stdout is not None
        if self._server.stdout.readline() != "ready\n":
            raise RuntimeError("the fork server did not start; see its message above")

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()
        self._sockets.cleanup()
        self._memory.cleanup()

    def run(self, run_folder: Path, options: list[str], steps: int, at: str = "", trace: Path | None = None) -> Ended:
        """Run a training job to its end, whatever end that is.

        Args:
            run_folder: its run folder, absolute.
            options: of the training command line.
            steps: steps to train before it stops by itself.
            at: where to die, as in CRASH_AT; "": nowhere.
            trace: file for the log of system calls, those in the folder around the run folder included.
        """
        control, report = self.folder / "control", self.folder / "report"
        log_nbytes = log_size(run_folder)
        control.write_bytes(bytes(_HEAD.size + MAX_PROCESSES * _PROCESS.size))
        report.write_text("")
        environment = self._environment | {
            "CRASH_FOLDER": str(run_folder.parent if trace else run_folder),
            "CRASH_RUN_FOLDER": str(run_folder),
            "CRASH_CONTROL": str(control),
            "CRASH_REPORT": str(report),
            "CRASH_STEPS": str(steps),
        }
        environment |= {"CRASH_AT": at} if at else {}
        environment |= {"CRASH_TRACE": str(trace)} if trace else {}
        client = [sys.executable, "-IS", str(HERE / "client.py"), self._address]
        arguments = [*options, "--run.dir", str(run_folder)]
        begin = time.monotonic()
        with tempfile.TemporaryFile("w+") as output:
            job = subprocess.Popen(
                [self._launcher, "-n", str(self.num_ranks), *client, *arguments],
                env=environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = job.wait(JOB_LIMIT_S)
            except subprocess.TimeoutExpired:
                code = -1
                job.kill()
                job.wait()
            output.seek(0)
            text = output.read()
        return self._read(control, report, announced_step(run_folder, log_nbytes), code, text, time.monotonic() - begin)

    def _read(self, control: Path, report: Path, announced: int, code: int, text: str, duration_s: float) -> Ended:
        data = control.read_bytes()
        num_processes, killed, *_ = _HEAD.unpack_from(data)
        calls, alive = {}, []
        for index in range(num_processes):
            pid, rank, role, _, *counts = _PROCESS.unpack_from(data, _HEAD.size + index * _PROCESS.size)
            calls[f"{rank}h{role}" if role else str(rank)] = counts
            if pid and Path("/proc", str(pid)).exists():
                alive.append(pid)
        lines = [json.loads(line) for line in report.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return Ended(code, bool(killed), calls, lines, announced, text, alive, duration_s)


def announced_step(run_folder: Path, begin: int = 0) -> int:
    """Return the newest step that the log of a run, from a byte on, announces as saved; -1 if there is none."""
    log = _log(run_folder)
    found = ANNOUNCED.findall(log.read_bytes()[begin:]) if log.exists() else []
    return max(map(int, found), default=-1)


def log_size(run_folder: Path) -> int:
    """Return the size of the log of a run, 0 if there is none."""
    log = _log(run_folder)
    return log.stat().st_size if log.exists() else 0


def _log(run_folder: Path) -> Path:
    return run_folder / "logs" / "rank-0000.log"
