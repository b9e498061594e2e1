"""Run folders that vanish or fill up under a running job: it says so, goes on, and fails only where its end cannot be kept."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from training_job import SMALL, Trainer, broken_program

from lepton_mpi.checkpoint.commit import list_checkpoints


def test_a_deleted_run_folder_is_made_anew(train: Trainer) -> None:
    fault = """
        import shutil
        shutil.rmtree(sys.argv[-1])
    """
    program = broken_program(0, 5, fault)
    job = train(2, *SMALL, "--train.steps", 14, "--checkpoint.every_steps", 4, program=program)
    assert "was deleted or emptied while training; it was made anew" in job.stdout
    assert job.summary["status"] == "finished"
    kept = [path.name for path in list_checkpoints(job.folder / "checkpoints")]
    assert kept == ["step-000000014", "step-000000012", "step-000000008"]
    assert (job.folder / "config.toml").is_file()
    assert job.steps[-1]["step"] == 14
    assert "checkpoint" in (job.folder / "logs" / "rank-0000.log").read_text()
    again = train(2, *SMALL, "--train.steps", 14, folder=job.folder)
    assert again.sha256 == job.sha256


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "lepton_test", folder], check=False).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_costs_checkpoints_and_metrics_but_not_the_run(train: Trainer, small_disk: Path) -> None:
    fault = """
        with open(Path(sys.argv[-1], "ballast"), "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
    """
    options = (*SMALL, "--train.steps", 40, "--checkpoint.every_steps", 4, "--checkpoint.asynchronous", "false")
    job = train(2, *options, program=broken_program(0, 5, fault), folder=small_disk / "run", code=1)
    assert "the checkpoint of step 8 could not be saved: " in job.stdout
    assert "No space left on device" in job.stdout
    assert "lines of metrics are missing from step" in job.stdout
    assert len(job.messages) >= 1
    assert "SaveError: the last checkpoint of the run, of step 40, could not be saved in 3 tries" in job.stderr
    assert "the newest one is of step 4" in job.stderr
    assert "Traceback" not in job.stderr
    (small_disk / "run" / "ballast").unlink()
    resumed = train(2, *options, folder=small_disk / "run")
    assert "resumed from step-000000004: step 4 of 40\n" in resumed.stdout
    assert [record["step"] for record in resumed.steps] == list(range(1, 41))
