"""Training jobs as users start them, and what tests look at afterwards: exit code, output, run folder."""

from __future__ import annotations

import json
import subprocess
import textwrap
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# A network that trains a step in about a millisecond: most jobs here are about everything around it.
SMALL = ("--model.hidden_sizes", "64,32", "--data.max_shift", "0")
# Ranks outnumber cores in these jobs, so more threads a rank would only get in each other's way.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
# Names the run folder in the environment of every process of a job, the launcher's included.
JOB_VARIABLE = "LEPTON_TEST_RUN_FOLDER"
# In the place of an exit code: any but 0, where the launcher has a say in it.
FAILED = -1

Mpirun = Callable[..., "subprocess.CompletedProcess[str]"]


@dataclass(frozen=True)
class Job:
    """A training job that has ended.

    Attributes:
        code: exit code of mpirun.
        stdout, stderr: what all ranks and the launcher printed.
        folder: its run folder.
        ended_s: when mpirun returned, in the system's time.
    """

    code: int
    stdout: str
    stderr: str
    folder: Path
    ended_s: float

    @property
    def text(self) -> str:
        """Everything it printed, for messages of tests."""
        return f"exit code {self.code}\nstdout:\n{self.stdout}\nstderr:\n{self.stderr}"

    @property
    def summary(self) -> dict[str, Any]:
        """Its summary.json."""
        summary: dict[str, Any] = json.loads((self.folder / "summary.json").read_text())
        return summary

    @property
    def sha256(self) -> str:
        """The hash of its final weights."""
        return str(self.summary["weights_sha256"])

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl about training steps."""
        records = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return [record for record in records if "loss" in record]

    @property
    def losses(self) -> list[float]:
        """The training loss of each step."""
        return [record["loss"] for record in self.steps]

    @property
    def messages(self) -> list[str]:
        """The lines of standard error that lepton_mpi wrote, without the launcher's."""
        return [line for line in self.stderr.splitlines() if line.startswith("lepton_mpi: ")]

    @property
    def fault_to_end_s(self) -> float:
        """Seconds from the fault of `broken_program` to the end of the whole job."""
        return self.ended_s - float((self.folder / "fault_s").read_text())

    def checkpoint(self, step: int) -> Path:
        """Return the data file of a checkpoint."""
        return self.folder / "checkpoints" / f"step-{step:09d}" / "data.h5"


class Trainer:
    """Starts training jobs, each in a run folder of its own: `trainer(4, "--train.steps", 3)`."""

    def __init__(self, mpirun: Mpirun, folder: Path) -> None:
        self._mpirun = mpirun
        self._folder = folder
        self._num_jobs = 0

    def __call__(
        self,
        num_ranks: int,
        *options: object,
        folder: Path | None = None,
        program: str = "",
        code: int = 0,
        timeout_s: float = 100.0,
    ) -> Job:
        """Run a job to its end and check its exit code.

        Args:
            num_ranks: number of ranks.
            options: of the command line; `--run.dir` is added.
            folder: run folder; None: a new one.
            program: Python text to run in place of the command, from `broken_program`.
            code: the exit code that must come; FAILED: any but 0.
            timeout_s: the test fails if the job takes longer.
        """
        if folder is None:
            self._num_jobs += 1
            folder = self._folder / f"run-{self._num_jobs}"
        start = ("-c", program) if program else ("-m", "lepton_mpi.train")
        arguments = (*start, *options, "--run.dir", folder)
        env = {**ENVIRONMENT, JOB_VARIABLE: str(folder)}
        ended = self._mpirun(num_ranks, *arguments, timeout_s=timeout_s, env=env, cwd=self._folder)
        job = Job(ended.returncode, ended.stdout, ended.stderr, folder, time.time())
        assert job.code == code or (code == FAILED and job.code != 0), job.text
        return job


class Commands:
    """Runs the commands around training in the test's folder: `lepton(2, "evaluate", job.folder, "--json")`."""

    def __init__(self, mpirun: Mpirun, folder: Path) -> None:
        self._mpirun = mpirun
        self._folder = folder

    def __call__(self, num_ranks: int, *argv: object, code: int = 0) -> str:
        """Run a command to its end, check its exit code, and return its standard output."""
        return self._run(num_ranks, argv, code).stdout

    def json(self, num_ranks: int, *argv: object) -> dict[str, Any]:
        """Run `evaluate` and return the JSON that it prints."""
        found: dict[str, Any] = json.loads(self(num_ranks, "evaluate", *argv, "--json"))
        return found

    def probabilities(self, num_ranks: int, *argv: object) -> np.ndarray:
        """Run `predict` and return the probabilities of all classes, one row a line that it prints."""
        header, *lines = self(num_ranks, "predict", *argv, "--probabilities").splitlines()
        first = header.split(",").index("probability_0")
        return np.array([line.split(",")[first:] for line in lines], np.float64)

    def refused(self, num_ranks: int, *argv: object) -> str:
        """Run a command that must end with exit code 2, no output and one message, and return the message."""
        ended = self._run(num_ranks, argv, 2)
        assert ended.stdout == ""
        return only_message(ended.stderr)

    def _run(self, num_ranks: int, argv: Iterable[object], code: int) -> subprocess.CompletedProcess[str]:
        ended = self._mpirun(num_ranks, "-m", "lepton_mpi", *argv, timeout_s=100.0, env=ENVIRONMENT, cwd=self._folder)
        assert ended.returncode == code, f"exit code {ended.returncode}\nstdout:\n{ended.stdout}\nstderr:\n{ended.stderr}"
        return ended


def read_weights(checkpoint: Path) -> dict[str, np.ndarray]:
    """Return the weights that a checkpoint holds, by name of the parameter."""
    import lepton_mpi.runtime.mpi  # noqa: F401 - or h5py, where it is parallel, would start MPI in this process
    from lepton_mpi.checkpoint.reader import CheckpointReader

    with CheckpointReader(checkpoint) as reader:
        infos = {path: info for path, info in reader.tensors.items() if path.startswith("/param/")}
        return {path.removeprefix("/param/"): reader.read(path, (0,) * len(info.shape), info.shape) for path, info in infos.items()}


def only_message(stderr: str) -> str:
    """Return the one message of lepton_mpi on standard error; there must be no other and no traceback."""
    messages = [line for line in stderr.splitlines() if line.startswith("lepton_mpi: ")]
    assert len(messages) == 1, stderr
    assert "Traceback" not in stderr, stderr
    assert "Warning" not in stderr, stderr
    return messages[0]


def grid(shape: str) -> tuple[str, ...]:
    """Return the options for a grid such as `2x2x1`: data, stages, shards."""
    data, stages, shards = shape.split("x")
    return ("--grid.data", data, "--grid.stages", stages, "--grid.shards", shards)


def num_ranks(shape: str) -> int:
    """Return how many ranks a grid such as `2x2x1` has."""
    data, stages, shards = map(int, shape.split("x"))
    return data * stages * shards


def processes_of(job: Job) -> list[int]:
    """Return the processes of a job that still live."""
    needle = f"{JOB_VARIABLE}={job.folder}\0".encode()
    alive = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if needle in environ.read_bytes():
                alive.append(int(environ.parent.name))
        except OSError:  # ended meanwhile, or another user's
            continue
    return alive


def orphaned_segments() -> set[str]:
    """Return the names of our shared-memory segments whose maker, whose number is in the name, is dead."""
    names = (path.name for path in Path("/dev/shm").glob("lepton-*"))
    return {name for name in names if not Path("/proc", name.split("-")[1]).exists()}


def broken_program(ranks: int | Iterable[int], step: int, fault: str) -> str:
    """Return a program that trains like the command, except that `fault` runs on some ranks before one step.

    Args:
        ranks: a rank, or several.
        step: steps done when the fault comes.
        fault: Python statements; `training` and `state` are those of `train_step`, and `kill(signal)` signals this process.
    """
    ranks = (ranks,) if isinstance(ranks, int) else tuple(ranks)
    indented = textwrap.indent(textwrap.dedent(fault).strip(), " " * 8).lstrip()
    return BROKEN_PROGRAM.format(ranks=ranks, step=step, fault=indented)


BROKEN_PROGRAM = """
import hashlib, os, runpy, signal, sys, threading, time
from pathlib import Path
import lepton_mpi.train.loop as loop

real_train_step = loop.train_step

def kill(number):
    os.kill(os.getpid(), number)

def train_step(training, state, stop_requested):
    if training.network.grid.rank in {ranks} and state.step == {step}:
        Path(sys.argv[-1], "fault_s").write_text(repr(time.time()))
        {fault}
    return real_train_step(training, state, stop_requested)

loop.train_step = train_step
runpy.run_module("lepton_mpi.train", run_name="__main__", alter_sys=True)
"""
