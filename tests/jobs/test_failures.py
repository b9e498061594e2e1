"""A failure on one rank ends the whole job soon, with one message that says where and why, and the run can go on."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import pytest
from training_job import FAILED, SMALL, Job, Trainer, broken_program, grid, orphaned_segments, processes_of

LIMIT_S = 10.0  # from the failure to the end of all processes
LONG = (*SMALL, "--train.epochs", 100_000, "--checkpoint.every_steps", 3)


def assert_ended(job: Job, orphans: set[str]) -> None:
    """Check that a job ended in time, and that nothing of it is left."""
    assert job.fault_to_end_s < LIMIT_S, job.text
    assert processes_of(job) == []
    assert orphaned_segments() <= orphans


@pytest.fixture
def orphans() -> set[str]:
    """Return the segments that something else had left before the test."""
    return orphaned_segments()


def test_exception_on_one_rank(train: Trainer, orphans: set[str]) -> None:
    job = train(4, *LONG, program=broken_program(1, 7, "raise RuntimeError('injected')"), code=FAILED)
    assert_ended(job, orphans)
    assert job.messages == [f"lepton_mpi: rank 1 on {platform.node()}, step 7 failed:"]
    assert job.stderr.count("Traceback (most recent call last)") == 1
    assert "RuntimeError: injected" in job.stderr
    assert f"log: {job.folder}/logs/rank-0001.log" in job.stderr
    assert (job.folder / "logs" / "failure.txt").read_text() in job.stderr


def test_exceptions_on_some_ranks(train: Trainer, orphans: set[str]) -> None:
    job = train(4, *LONG, program=broken_program([1, 2], 7, "raise RuntimeError('injected')"), code=FAILED)
    assert_ended(job, orphans)
    assert len(job.messages) == 1, job.text
    assert job.stderr.count("Traceback (most recent call last)") == 1


def test_exception_on_all_ranks(train: Trainer) -> None:
    job = train(3, *LONG, program=broken_program(range(3), 2, "1 / 0"), code=1)
    assert job.fault_to_end_s < LIMIT_S
    assert len(job.messages) == 1
    assert job.stderr.count("ZeroDivisionError: division by zero") == 1
    summary = job.summary
    assert (summary["status"], summary["step"]) == ("failed", 2)


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_killed_rank(train: Trainer, orphans: set[str], rank: int) -> None:
    # From a thread and not at once, so that it strikes anywhere, inside MPI too.
    kill = "threading.Timer(0.05, kill, [signal.SIGKILL]).start()"
    job = train(4, *LONG, *grid("2x2x1"), program=broken_program(rank, 7, kill), code=FAILED)
    assert_ended(job, orphans)
    # MPICH's launcher kills the other ranks mostly before they can speak, and tells of the signal itself.
    if job.messages or "BAD TERMINATION" not in job.stdout:
        assert len(job.messages) == 1, job.text
        assert job.messages[0].startswith(f"lepton_mpi: rank {rank} on {platform.node()} (process ")
        assert " died at step " in job.messages[0]
        assert f"log: {job.folder}/logs/rank-{rank:04d}.log" in job.stderr
    assert "Traceback" not in job.stderr

    assert job.summary["status"] == "running"

    done = max(int(path.name.removeprefix("step-")) for path in (job.folder / "checkpoints").glob("step-*"))
    assert done >= 3  # that of step 6 may have been on its way
    resumed = train(4, *LONG, *grid("2x2x1"), "--train.steps", done + 4, folder=job.folder)
    assert f"resumed from step-{done:09d}" in resumed.stdout
    assert [record["step"] for record in resumed.steps] == list(range(1, done + 5))
    assert resumed.summary["status"] == "finished"
    assert not (job.folder / "logs" / "failure.txt").exists()


def test_rank_that_never_comes(train: Trainer, orphans: set[str]) -> None:
    job = train(2, *LONG, *grid("2x1x1"), "--reduce.timeout_s", 2, program=broken_program(1, 7, "time.sleep(60)"), code=FAILED)
    assert_ended(job, orphans)
    assert len(job.messages) == 1, job.text
    assert job.messages[0].startswith("lepton_mpi: StallError: ")
    assert f"(rank 0 on {platform.node()}, step 7)" in job.messages[0]


@pytest.mark.parametrize("rank", [0, 2])
def test_sigterm_to_one_rank_stops_the_run_in_order(train: Trainer, rank: int) -> None:
    job = train(3, *LONG, "--checkpoint.every_steps", 0, program=broken_program(rank, 5, "kill(signal.SIGTERM)"))
    assert job.fault_to_end_s < LIMIT_S
    assert job.stderr == ""
    step = job.summary["step"]
    assert 6 <= step <= 7  # the step it was in, and at most the one after
    assert job.summary["status"] == "interrupted"
    assert f"at step {step}: " in job.stdout
    assert job.checkpoint(step).exists()
    resumed = train(3, *LONG, "--train.steps", step + 2, folder=job.folder)
    assert f"resumed from step-{step:09d}" in resumed.stdout
    assert [record["step"] for record in resumed.steps] == list(range(1, step + 3))


@pytest.fixture
def separable(tmp_path: Path) -> dict[str, np.ndarray]:
    """Return 90 samples of 3 classes."""
    labels = np.arange(90) % 3
    return {"x": np.eye(3, 8, dtype=np.float32)[labels], "y": labels}


@pytest.mark.parametrize("ranks", [1, 3])
def test_nan_in_the_data(train: Trainer, tmp_path: Path, separable: dict[str, np.ndarray], ranks: int) -> None:
    separable["x"][40, 2] = np.nan
    np.savez(tmp_path / "nan.npz", **separable)
    data = ("--data.format", "npz", "--data.path", tmp_path / "nan.npz", "--data.test_fraction", 0, "--train.global_batch", 30)
    job = train(ranks, *SMALL, *data, "--data.normalise", "none", "--checkpoint.every_steps", 1, code=1)
    assert len(job.messages) == 1, job.text
    message = job.messages[0]
    assert message.startswith("lepton_mpi: NonFiniteError: the loss became NaN or infinite at step ")
    assert "look for NaN in the data" in message
    assert "Traceback" not in job.stderr
    assert job.summary["status"] == "failed"
    step = job.summary["step"]
    assert step <= 2  # it is in one of the three batches of the first epoch
    assert len(job.steps) == step  # what came before is kept

    refused = train(ranks, *SMALL, *data, code=2)
    assert len(refused.messages) == 1
    assert "sample 40: expected finite inputs, found NaN or infinity" in refused.messages[0]


def test_diverging_run(train: Trainer) -> None:
    job = train(4, *SMALL, "--optimizer.name", "sgd", "--optimizer.lr", 1e12, *grid("2x2x1"), code=1)
    assert len(job.messages) == 1, job.text
    assert "became NaN or infinite at step " in job.messages[0]
    assert "RuntimeWarning" not in job.stderr, job.text


WRONG = {
    "unknown key": (["--train.stepz", "3"], "did you mean train.steps?"),
    "unknown section": (["--trainer.steps", "3"], "did you mean train"),
    "wrong type": (["--train.steps", "many"], "train.steps: expected an integer of at least 0, got 'many'"),
    "grid": (["--grid.data", "4"], "grid: data=4 x stages=any x shards=any does not fit"),
    "too many stages": (["--grid.stages", "9"], "grid.stages: this model can be cut into at most 5 stages, received 9"),
    "missing config": (["no-such.toml"], "cannot read the configuration file no-such.toml"),
    "missing data": (["--data.format", "npz", "--data.path", "no-such.npz"], "expected a readable data file"),
    "labels": (["--data.num_classes", "5"], "expected an integer label 0 .. 4"),
}


@pytest.mark.parametrize("options, expected", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("ranks", [3, 1])
def test_wrong_configuration(train: Trainer, ranks: int, options: list[str], expected: str) -> None:
    job = train(ranks, *options, code=2)
    assert len(job.messages) == 1, job.text
    assert expected in job.messages[0]
    assert "Traceback" not in job.stderr
    assert job.stdout == ""
    assert not job.folder.exists()


def test_file_in_the_place_of_the_run_folder(train: Trainer, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    for folder in (file, file / "run"):
        job = train(3, *SMALL, folder=folder, code=2)
        assert len(job.messages) == 1, job.text
        assert f"run.dir: cannot use the run folder {folder}" in job.messages[0]
        assert "Traceback" not in job.stderr
    assert file.read_text() == "precious"
