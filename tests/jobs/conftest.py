"""Training jobs for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_job import Commands, Mpirun, Trainer


@pytest.fixture
def train(mpirun: Mpirun, tmp_path: Path) -> Trainer:
    """Run `mpirun -n num_ranks python -m lepton_mpi.train` to its end; see `Trainer`."""
    return Trainer(mpirun, tmp_path)


@pytest.fixture
def lepton(mpirun: Mpirun, tmp_path: Path) -> Commands:
    """Run `mpirun -n num_ranks python -m lepton_mpi COMMAND ...` to its end; see `Commands`."""
    return Commands(mpirun, tmp_path)
