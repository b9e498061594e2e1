"""Going on where a run ended: the same weights as without the break, on any grid, and nothing lost when it cannot be."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from training_job import SMALL, Job, Trainer, grid

AUGMENTED = ("--data.max_shift", 1, "--optimizer.clip_norm", 0.5, "--optimizer.schedule", "constant")


def fingerprints(folder: Path) -> dict[str, str]:
    """Return the hash of every file of a run folder, logs apart."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.parent.name != "logs")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def finished(train: Trainer) -> Job:
    """Return a job of 3 steps that is through."""
    return train(2, *SMALL, "--train.steps", 3)


def test_resume_ends_with_the_same_weights(train: Trainer) -> None:
    options = (*SMALL, *AUGMENTED, *grid("2x2x1"))
    whole = train(4, *options, "--train.steps", 20)
    first = train(4, *options, "--train.steps", 10)  # within the first epoch, of 12 steps
    assert first.sha256 != whole.sha256
    second = train(4, *options, "--train.steps", 20, folder=first.folder)
    assert "resumed from step-000000010: step 10 of 20\n" in second.stdout
    assert second.sha256 == whole.sha256
    assert [record["step"] for record in second.steps] == list(range(1, 21))
    same = ("step", "epoch", "loss", "accuracy", "grad_norm", "lr")  # all but the speed
    assert [[record[key] for key in same] for record in second.steps] == [[record[key] for key in same] for record in whole.steps]
    assert second.summary["eval"] == whole.summary["eval"]


def test_resume_goes_back_to_the_last_checkpoint(train: Trainer) -> None:
    options = (*SMALL, *AUGMENTED)
    first = train(3, *options, "--train.steps", 10, "--checkpoint.every_steps", 4)
    newest = first.checkpoint(10).parent
    (newest / "MANIFEST.json").write_text("damaged")
    second = train(3, *options, "--train.steps", 10, folder=first.folder)
    assert "resumed from step-000000008: step 8 of 10\n" in second.stdout
    assert [record["step"] for record in second.steps] == list(range(1, 11))
    assert "DAMAGED" in (first.folder / "logs" / "rank-0000.log").read_text()


def test_resume_on_another_grid(train: Trainer) -> None:
    options = (*SMALL, *AUGMENTED, "--optimizer.lr", 0.01)
    whole = train(4, *options, *grid("2x2x1"), "--train.steps", 20)
    first = train(4, *options, *grid("2x2x1"), "--train.steps", 10)
    unmoved = train(3, *options, *grid("3x1x1"), "--train.steps", 10, folder=first.folder)
    assert unmoved.sha256 == first.sha256
    for shape, ranks in (("1x1x2", 2), ("3x1x1", 3)):
        second = train(ranks, *options, *grid(shape), "--train.steps", 20 if ranks == 2 else 22, folder=first.folder)
        np.testing.assert_allclose(second.losses[10:20], whole.losses[10:], rtol=2e-6)  # as between grids that never changed
    assert [record["step"] for record in second.steps] == list(range(1, 23))


def test_finished_run_is_left_as_it_is(train: Trainer, finished: Job) -> None:
    files = fingerprints(finished.folder)
    again = train(2, *SMALL, "--train.steps", 3, folder=finished.folder)
    assert "step 3 of 3 (nothing left to do)\n" in again.stdout
    assert again.stdout.endswith(f"accuracy {again.summary['eval']['accuracy']:.4f}, run folder {finished.folder}\n")
    assert fingerprints(finished.folder) == files


def test_fresh_refuses_a_folder_with_checkpoints(train: Trainer, finished: Job) -> None:
    files = fingerprints(finished.folder)
    refused = train(2, *SMALL, "--train.steps", 6, "--run.fresh", folder=finished.folder, code=2)
    assert len(refused.messages) == 1
    assert "run.fresh: the run folder" in refused.messages[0]
    assert fingerprints(finished.folder) == files


def test_fresh_takes_a_new_folder(train: Trainer) -> None:
    assert train(2, *SMALL, "--train.steps", 1, "--run.fresh").summary["status"] == "finished"


def test_another_model_is_refused(train: Trainer, finished: Job) -> None:
    files = fingerprints(finished.folder)
    refused = train(2, "--model.hidden_sizes", "64,48", "--train.steps", 6, folder=finished.folder, code=2)
    assert len(refused.messages) == 1
    assert "tensor /param/layers.1.bias: the model has shape (48,) of float32, the checkpoint shape (32,)" in refused.messages[0]
    assert "Traceback" not in refused.stderr
    assert fingerprints(finished.folder) == files


def test_another_optimizer_is_refused(train: Trainer, finished: Job) -> None:
    refused = train(2, *SMALL, "--optimizer.name", "sgd", "--train.steps", 6, folder=finished.folder, code=2)
    assert len(refused.messages) == 1
    assert "tensor /opt/" in refused.messages[0]
