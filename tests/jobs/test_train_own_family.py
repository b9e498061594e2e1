"""Training with the family of examples/own_family, found by its module's name."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from training_job import Mpirun, Trainer, grid

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_family"


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """Put the example into the current directory of the jobs and return its configuration."""
    for name in ("squeeze_mlp.py", "config.toml"):
        shutil.copy(EXAMPLE / name, tmp_path)
    return tmp_path / "config.toml"


def test_it_learns_and_grids_agree(train: Trainer, example: Path) -> None:
    options = (example, "--train.steps", 30, "--data.max_shift", 0)
    shards, ranks = train(2, *options, *grid("1x1x2")), train(2, *options, *grid("2x1x1"))
    assert "squeeze_mlp 3 blocks" in shards.stdout
    assert shards.losses[-1] < 0.5 * shards.losses[0]
    assert shards.losses == pytest.approx(ranks.losses, rel=1e-3)


def test_commands_find_the_family(train: Trainer, mpirun: Mpirun, example: Path) -> None:
    run = train(2, example, "--train.steps", 3)
    ended = mpirun(1, "-m", "lepton_mpi", "evaluate", run.folder, cwd=example.parent, env=dict(os.environ))
    assert ended.returncode == 0, ended.stderr
    assert "accuracy" in ended.stdout
