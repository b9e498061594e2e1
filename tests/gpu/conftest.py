"""What these tests share with others: the cases of tests/unit/ops, and the small data sets and training jobs of tests/jobs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
sys.path.extend(str(TESTS / folder) for folder in ("unit/ops", "jobs"))

from training_job import Mpirun, Trainer  # noqa: E402 (found by the line above)


@pytest.fixture
def train(mpirun: Mpirun, tmp_path: Path) -> Trainer:
    """Run `mpirun -n num_ranks python -m lepton_mpi.train` to its end; see `Trainer`."""
    return Trainer(mpirun, tmp_path)
