"""Two jobs on one run folder: the second is refused with the first one named, also after kills of the first."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from training_job import ENVIRONMENT, SMALL, Trainer

STEPS = ("--train.steps", 100000, "--checkpoint.every_steps", 50)


@pytest.fixture
def first(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A job of one rank that trains until it is ended, with a checkpoint already."""
    arguments = [*SMALL, *map(str, STEPS), "--run.dir", tmp_path / "run"]
    command = [sys.executable, "-m", "lepton_mpi.train", *arguments]
    job = subprocess.Popen(command, env={**os.environ, **ENVIRONMENT}, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("run/checkpoints/step-*")):
        assert time.monotonic() < deadline
        assert job.poll() is None
        time.sleep(0.05)
    yield job
    job.kill()
    job.wait()


def test_the_second_job_is_refused_while_the_first_lives(train: Trainer, first: subprocess.Popen[bytes], tmp_path: Path) -> None:
    holder = json.loads((tmp_path / "run" / "run.lock").read_text())
    assert holder["pid"] == first.pid
    refused = train(2, *SMALL, *STEPS, folder=tmp_path / "run", code=2)
    assert len(refused.messages) == 1
    assert f"is in use by process {first.pid} on {holder['host']}" in refused.messages[0]
    assert holder["since"] in refused.messages[0]
    assert first.poll() is None
    first.send_signal(signal.SIGKILL)
    first.wait()
    resumed = train(1, *SMALL, "--train.steps", 10, folder=tmp_path / "run")
    assert "resumed from step-" in resumed.stdout
    assert (tmp_path / "run" / "run.lock").read_bytes() == b""
