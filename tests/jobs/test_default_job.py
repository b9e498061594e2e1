"""What a user gets from `mpirun -n N python -m lepton_mpi.train` without a configuration."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from training_job import ENVIRONMENT, Mpirun, Trainer

from lepton_mpi.config.command_line import parse_arguments

SUMMARY = {
    "status",
    "step",
    "epoch",
    "train_loss",
    "eval",
    "stopped_early",
    "best",
    "weights_sha256",
    "grid",
    "samples_per_second",
    "data_wait_share",
    "wall_seconds",
    "versions",
}
STEPS_AN_EPOCH = 12  # 1438 training samples in batches of 128, the last one smaller


def test_16_ranks(train: Trainer) -> None:
    job = train(16, "--train.epochs", 2)
    assert job.stderr == ""
    lines = job.stdout.splitlines()
    assert "data 4 x stages 2 x shards 2 = 16 ranks on 1 host" in lines[1]
    assert "64-1000-512-256-128-10, 743,026 parameters" in job.stdout
    assert [line.split(":")[0] for line in lines if line.startswith("epoch ")] == ["epoch 1", "epoch 2"]
    summary = job.summary
    assert lines[-1].startswith(f"finished: test accuracy {summary['eval']['accuracy']:.4f}, ")
    assert lines[-1].endswith(f"run folder {job.folder}")
    assert job.stdout.count(str(job.folder)) == 2  # in the banner and at the end

    assert summary.keys() == SUMMARY
    assert (summary["status"], summary["step"], summary["epoch"]) == ("finished", 2 * STEPS_AN_EPOCH, 2)
    assert summary["grid"] == {"data": 4, "stages": 2, "shards": 2}
    assert summary["eval"].keys() == {"accuracy", "top5_accuracy", "precision", "recall", "f1", "loss", "per_class"}
    assert [metrics.keys() for metrics in summary["eval"]["per_class"]] == [{"precision", "recall", "f1", "support"}] * 10
    assert sum(metrics["support"] for metrics in summary["eval"]["per_class"]) == 1797 - 1438
    assert len(bytes.fromhex(summary["weights_sha256"])) == 32
    assert summary["versions"].keys() >= {"lepton_mpi", "python", "numpy", "mpi4py", "mpi", "h5py"}
    assert 0 < summary["wall_seconds"] < 100
    assert summary["samples_per_second"] > 0

    assert [record["step"] for record in job.steps] == list(range(1, 2 * STEPS_AN_EPOCH + 1))
    assert sum(job.losses[STEPS_AN_EPOCH:]) < 0.7 * sum(job.losses[:STEPS_AN_EPOCH])
    assert "starting at step 0 of 24" in (job.folder / "logs" / "rank-0000.log").read_text()
    assert sorted(path.name for path in job.folder.iterdir()) == [
        "checkpoints",
        "config.toml",
        "logs",
        "metrics.jsonl",
        "run.lock",
        "summary.json",
    ]
    assert job.checkpoint(2 * STEPS_AN_EPOCH).exists()


def test_config_toml_gives_the_same_run_again(train: Trainer) -> None:
    options = ["--train.steps", "3", "--optimizer.name", "sgd", "--model.hidden_sizes", "20,30", "--data.normalise", "feature"]
    job = train(4, *options)
    written = parse_arguments([str(job.folder / "config.toml")]).config
    asked = parse_arguments([*options, "--run.dir", str(job.folder)]).config
    sizes = job.summary["grid"]
    assert sizes == {"data": 2, "stages": 2, "shards": 1}
    assert written == replace(asked, grid=replace(asked.grid, **sizes))
    again = train(4, job.folder / "config.toml", folder=job.folder.parent / "again")
    assert again.sha256 == job.sha256


def test_run_folder_is_made_under_runs(mpirun: Mpirun, tmp_path: Path) -> None:
    small = ("--model.hidden_sizes", "8", "--train.steps", "1")
    for _ in range(2):
        ended = mpirun(2, "-m", "lepton_mpi.train", *small, env=ENVIRONMENT, cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
    folders = sorted((tmp_path / "runs").iterdir())
    assert len(folders) == 2  # no run goes on in the folder of another without being told to
    assert all(folder.name.startswith("mlp-digits-") for folder in folders)
    assert [json.loads((folder / "summary.json").read_text())["step"] for folder in folders] == [1, 1]


@pytest.mark.parametrize("ranks", [3, 5, 7])
def test_odd_ranks(train: Trainer, ranks: int) -> None:
    job = train(ranks, "--train.steps", 4, "--train.evaluate_every_epochs", 0)
    sizes = job.summary["grid"]
    assert sizes["data"] * sizes["stages"] * sizes["shards"] == ranks
    assert job.losses[-1] < job.losses[0]


@pytest.mark.timeout_s(300)
def test_learns_the_digits(train: Trainer) -> None:
    job = train(4, timeout_s=280)
    assert job.summary["eval"]["accuracy"] >= 0.97
    assert job.summary["step"] == 30 * STEPS_AN_EPOCH
