"""What training can do besides minimising: stop early, keep the best, average, freeze, weigh classes, train a user's own family."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import numpy as np
import pytest
from small_data import CASES, make_images, write_npz
from training_job import Commands, Job, Trainer, only_message, read_weights

OPTIONS = CASES["mlp"].all_options
STILL = ("--optimizer.name", "sgd", "--optimizer.lr", 0.0)  # no evaluation is better than the first


@pytest.fixture(autouse=True)
def data(tmp_path: Path) -> None:
    """Write the data that OPTIONS name."""
    write_npz(tmp_path, *make_images())


def test_early_stopping_ends_a_run_for_good(train: Trainer) -> None:
    options = (*OPTIONS, *STILL, "--train.epochs", 50, "--train.patience", 2, "--checkpoint.every_steps", 0)
    job = train(2, *options)
    steps = job.summary["step"]
    assert steps == 3 * 4  # epochs of 45 samples in batches of 12
    assert (job.summary["status"], job.summary["stopped_early"]) == ("finished", True)
    again = train(2, *options, folder=job.folder)
    assert len(again.steps) == steps
    assert (again.summary["status"], again.summary["stopped_early"]) == ("finished", True)
    assert again.summary["weights_sha256"] == job.sha256


def test_the_best_checkpoint_evaluates_to_the_best_value(train: Trainer, lepton: Commands) -> None:
    options = ("--optimizer.lr", 0.3, "--train.evaluate_every_steps", 1, "--train.metric", "loss", "--checkpoint.keep_best", "true")
    job = train(2, *OPTIONS, *options, "--train.steps", 8)
    found = [record for record in read_metrics(job) if "test_loss" in record]
    best = min(found, key=lambda record: record["test_loss"])
    assert job.summary["best"] == best["test_loss"]
    kept = lepton.json(1, job.folder / "best")
    assert kept["step"] == best["step"]
    assert kept["loss"] == pytest.approx(best["test_loss"], rel=1e-5)


def read_metrics(job: Job) -> list[dict[str, float]]:
    """Return all lines of metrics.jsonl."""
    return [json.loads(line) for line in (job.folder / "metrics.jsonl").read_text().splitlines()]


def test_the_average_is_what_is_evaluated(train: Trainer, lepton: Commands) -> None:
    plain = train(2, *OPTIONS, "--train.steps", 6)
    averaged = train(2, *OPTIONS, "--train.steps", 6, "--train.ema_decay", 0.9)
    assert averaged.sha256 == plain.sha256
    assert averaged.summary["eval"] != plain.summary["eval"]
    assert lepton.json(3, averaged.folder)["loss"] == pytest.approx(averaged.summary["eval"]["loss"], rel=1e-5)


def test_frozen_parameters_stay(train: Trainer) -> None:
    frozen = ("--optimizer.freeze", "layers.0.*", "--optimizer.groups", "layers.2.*: lr=0", "--checkpoint.every_steps", 1)
    job = train(2, *OPTIONS, *frozen, "--checkpoint.keep_last", 0, "--train.steps", 5)
    first, last = (read_weights(job.checkpoint(step).parent) for step in (1, 5))
    moved = {name for name, values in first.items() if not np.array_equal(values, last[name])}
    assert moved == {"layers.1.weight", "layers.1.bias"}


WRONG = {
    "metric": (
        ("--train.metric", "bleu"),
        "train.metric: expected one of the task's metrics, accuracy, precision, recall, f1, loss",
    ),
    "patience": (("--train.patience", 2, "--data.test_fraction", 0), "train.patience: there is no test set"),
    "class weights": (("--train.class_weights", "1,2"), "train.class_weights: expected 3 weights"),
    "smoothing": (("--model.task", "regression", "--train.label_smoothing", 0.1), "the task regression has no classes"),
    "group": (("--optimizer.groups", "layers.0.*: momentum=1"), "optimizer.groups: "),
    "more pieces than samples": (("--train.micro_batches", 7), "train.global_batch: expected at least "),
}


@pytest.mark.parametrize("options, expected", WRONG.values(), ids=WRONG)
def test_wrong_settings(train: Trainer, options: tuple[object, ...], expected: str) -> None:
    grid = ("--grid.data", 2) if "--train.micro_batches" in options else ()
    job = train(2, *OPTIONS, *grid, *options, code=2)
    assert expected in only_message(job.stderr)
    assert job.stdout == ""
    assert not job.folder.exists()


MODULE = """
    from lepton_mpi.models.family import DataShape, Family, ModelSpec
    from lepton_mpi.nn.flatten import Flatten
    from lepton_mpi.nn.linear import Linear

    class Tiny(Family):
        def declare(self, config, task, data):
            hidden = dict(option.split("=") for option in config.options)["hidden"]
            size = data.input_shape[0] * data.input_shape[1] * data.input_shape[2]
            layers = (Flatten("flatten"), Linear("a", size, int(hidden), relu=True), Linear("b", int(hidden), data.num_outputs))
            return ModelSpec("tiny", task, data, layers, summary=f"tiny {hidden}")

    class NoFamily:
        pass
"""


def test_a_family_of_the_users_own(train: Trainer, lepton: Commands, tmp_path: Path) -> None:
    (tmp_path / "my_models.py").write_text(textwrap.dedent(MODULE))
    (tmp_path / "broken.py").write_text("raise RuntimeError('not today')")
    own = ("--model.family", "my_models:Tiny", "--model.options", "hidden=6")
    job = train(2, *OPTIONS, *own, "--train.steps", 6)
    assert "tiny 6" in job.stdout
    assert job.losses[-1] < job.losses[0]
    assert lepton.json(3, job.folder)["accuracy"] == job.summary["eval"]["accuracy"]

    for family, expected in {
        "broken:Tiny": "cannot import the module broken of 'broken:Tiny': RuntimeError: not today",
        "my_models:NoFamily": "expected NoFamily in ",
    }.items():
        refused = train(2, *OPTIONS, "--model.family", family, code=2)
        assert expected in only_message(refused.stderr)
        assert not refused.folder.exists()
