"""Ctrl-C and SIGTERM given to mpirun itself: a checkpoint at the next step boundary, then a clean end."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from training_job import SMALL, Trainer, broken_program, grid

import lepton_mpi


def launcher_asks_first() -> bool:
    """Whether this environment's mpirun leaves ranks the time to stop: MPICH's does, Open MPI's with ours in front."""
    build = json.loads((Path(lepton_mpi.__file__).parent / "_native_build.json").read_text())
    return build["mpi_family"] == "mpich" or (Path(sys.executable).parent / "mpirun.openmpi").exists()


def signal_to_launcher(number: signal.Signals) -> str:
    """Return statements that send a signal to the launcher: the ancestor that this test process started."""
    return f"""
    pid = os.getpid()
    while (parent := int(Path(f"/proc/{{pid}}/stat").read_text().rsplit(")", 1)[1].split()[1])) != {os.getpid()}:
        pid = parent
    os.kill(pid, {int(number)})
    """


@pytest.mark.skipif(not launcher_asks_first(), reason="this Open MPI's own mpirun kills its ranks 0.25 s after a signal")
@pytest.mark.skipif(sys.platform != "linux", reason="finds the launcher through /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_mpirun_ends_the_run_with_a_checkpoint(train: Trainer, number: signal.Signals) -> None:
    options = (*SMALL, *grid("2x2x1"), "--train.epochs", 100_000, "--checkpoint.every_steps", 0)
    job = train(4, *options, program=broken_program(0, 5, signal_to_launcher(number)))
    step = job.summary["step"]
    assert job.summary["status"] == "interrupted", job.text
    assert step >= 5, job.text
    assert job.checkpoint(step).exists(), job.text
    assert len(job.steps) == step, job.text
    assert "Traceback" not in job.text, job.text
    assert job.fault_to_end_s < 10, job.text

    resumed = train(4, *SMALL, *grid("2x2x1"), "--train.steps", step + 2, folder=job.folder)
    assert [record["step"] for record in resumed.steps] == list(range(1, step + 3)), resumed.text
