"""Training with `run.device = gpu` on arrays that refuse what CuPy's do, against training on NumPy arrays; no GPU is needed."""

from __future__ import annotations

from pathlib import Path

import pytest
from family_grids import PLAIN, grid_of
from small_data import CASES
from training_job import Job, Trainer, grid, num_ranks

STAND_IN = f"""
import sys
sys.path.insert(0, {str(Path(__file__).resolve().parents[1] / "unit" / "ops")!r})
import strict_device
sys.modules.update(strict_device.modules())
from lepton_mpi.train.__main__ import main
sys.exit(main([*sys.argv[1:], "--run.device", "gpu"]))
"""


def numbers(job: Job) -> dict[str, float]:
    return {name: value for name, value in job.summary["eval"].items() if isinstance(value, float)}


@pytest.mark.parametrize("name", CASES)
def test_follows_the_host(train: Trainer, tmp_path: Path, name: str) -> None:
    CASES[name].write(tmp_path)
    options = (*CASES[name].all_options, *grid(grid_of(name)), *PLAIN, "--train.steps", 3)
    on_host, on_device = (train(num_ranks(grid_of(name)), *options, program=program) for program in ("", STAND_IN))
    assert "stand-in" in on_device.stdout and on_device.stderr == ""
    assert on_device.losses == pytest.approx(on_host.losses, rel=1e-4)
    assert numbers(on_device) == pytest.approx(numbers(on_host), rel=1e-3)


def test_a_resumed_run_ends_like_a_whole_one(train: Trainer, tmp_path: Path) -> None:
    case = CASES["resnet"]
    case.write(tmp_path)
    whole = train(2, *case.all_options, "--train.steps", 4, program=STAND_IN)
    train(2, *case.all_options, "--train.steps", 2, folder=tmp_path / "parts", program=STAND_IN)
    parts = train(2, *case.all_options, "--train.steps", 4, folder=tmp_path / "parts", program=STAND_IN)
    assert "resumed" in parts.stdout
    assert parts.sha256 == whole.sha256
