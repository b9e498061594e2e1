"""Training on what arrives while it runs: every record once, through stops, resumes, and other grids."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from training_job import Trainer, grid

NUM_RECORDS = 1000
OPTIONS = (
    *("--data.format", "stream", "--data.normalise", "none", "--data.num_classes", 3, "--model.hidden_sizes", "8,8"),
    *("--train.global_batch", 48, "--optimizer.schedule", "constant", "--train.seed", 3),
)


def records() -> list[str]:
    random = np.random.default_rng(1)
    labels = np.arange(NUM_RECORDS) % 3
    points = random.normal(0, 0.3, (NUM_RECORDS, 2)) + np.stack([labels - 1, labels % 2], axis=1)
    rows = zip(points.tolist(), labels.tolist(), strict=True)
    return ["a,b,label\n", *(f"{a:.5f},{b:.5f},{label}\n" for (a, b), label in rows)]


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A stream that has ended."""
    path = tmp_path / "whole.csv"
    path.write_text("".join(records()))
    Path(f"{path}.end").touch()
    return path


def write_slowly(path: Path, pieces: int, pause_s: float, end: bool = True) -> threading.Thread:
    """Begin to append the records to a file or FIFO, some at a time."""
    lines = records()

    def work() -> None:
        with open(path, "a") as file:
            for piece in range(pieces):
                file.write("".join(lines[len(lines) * piece // pieces : len(lines) * (piece + 1) // pieces]))
                file.flush()
                time.sleep(pause_s)
        if end:
            Path(f"{path}.end").touch()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_stream_is_used_once_from_end_to_end(train: Trainer, whole: Path, tmp_path: Path) -> None:
    options = (*OPTIONS, "--train.steps", 500)
    job = train(2, *options, *grid("2x1x1"), "--data.path", whole)
    assert (job.summary["status"], job.summary["step"]) == ("finished", 21)  # 20 batches of 48, and one of 40
    assert job.losses[-1] < job.losses[0]
    growing = tmp_path / "growing.csv"
    growing.touch()
    writer = write_slowly(growing, 12, 0.3)
    other = train(3, *options, *grid("1x1x3"), "--data.path", growing)
    writer.join()
    np.testing.assert_allclose(other.losses, job.losses, rtol=1e-5)


def test_a_resume_goes_on_with_the_next_record(train: Trainer, whole: Path) -> None:
    job = train(2, *OPTIONS, "--data.path", whole, "--train.steps", 500)
    first = train(2, *OPTIONS, "--data.path", whole, "--train.steps", 7)
    second = train(2, *OPTIONS, "--data.path", whole, "--train.steps", 500, folder=first.folder)
    assert second.sha256 == job.sha256
    assert second.losses == job.losses


def test_a_fifo_and_nobody_who_writes_any_more(train: Trainer, whole: Path, tmp_path: Path) -> None:
    job = train(2, *OPTIONS, "--data.path", whole, "--train.steps", 500)
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    writer = write_slowly(fifo, 5, 0.2, end=False)
    piped = train(2, *OPTIONS, "--data.path", fifo, "--train.steps", 500, "--data.stream_idle_s", 2)
    writer.join()
    assert piped.losses == job.losses
    assert Path(f"{fifo}.spool").read_text() == whole.read_text()


def test_a_record_that_is_none_ends_the_job(train: Trainer, whole: Path) -> None:
    text = whole.read_text().splitlines(keepends=True)
    whole.write_text("".join([*text[:100], "1,2\n", *text[100:]]))
    job = train(2, *OPTIONS, "--data.path", whole, "--train.steps", 500, code=2)
    assert len(job.messages) == 1
    assert "expected 3 numbers, found 2 cells: '1,2'" in job.messages[0]
