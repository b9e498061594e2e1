"""Every family as its users have it: trained, resumed, evaluated and asked for predictions, each on another number of ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_data import CASES
from training_job import Commands, Trainer

STEPS = 12


@pytest.mark.parametrize("name", CASES)
def test_family(train: Trainer, lepton: Commands, tmp_path: Path, name: str) -> None:
    case = CASES[name]
    case.write(tmp_path)
    begun = train(2, *case.all_options, "--train.steps", STEPS // 2)
    job = train(3, *case.all_options, "--train.steps", STEPS, folder=begun.folder)
    assert (begun.stderr, job.stderr) == ("", "")
    assert f"resumed from step-{STEPS // 2:09d}" in job.stdout
    assert len(job.losses) == STEPS
    assert np.mean(job.losses[-4:]) < 0.97 * np.mean(job.losses[:4]), job.losses

    expected = job.summary["eval"]
    assert tuple(metric for metric in expected if metric != "per_class") == case.metrics
    found = lepton.json(1, job.folder)
    values = [[evaluation[metric] for metric in case.metrics] for evaluation in (found, expected)]
    assert values[0] == pytest.approx(values[1], rel=1e-4)

    lines = lepton(2, "predict", job.folder, case.input).splitlines()
    assert lines[0] == case.header
    assert len(lines) == 1 + case.num_rows
    assert np.isfinite([float(line.rsplit(",", 1)[1]) for line in lines[1:]]).all()


@pytest.mark.parametrize(
    ("name", "num_ranks"), [("resnet", 5), ("resnet", 16), ("unet", 7), ("gpt", 7), ("llama", 5), ("bert", 7), ("ranking", 5)]
)
def test_any_number_of_ranks(train: Trainer, tmp_path: Path, name: str, num_ranks: int) -> None:
    case = CASES[name]
    case.write(tmp_path)
    job = train(num_ranks, *case.all_options, "--train.steps", 2, "--train.global_batch", 4)
    sizes = job.summary["grid"]
    assert job.stderr == ""
    assert sizes["data"] * sizes["stages"] * sizes["shards"] == num_ranks
