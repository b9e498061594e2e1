"""A communicator, and a directory that all ranks share, for the checkpoint tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lepton_mpi.runtime.mpi import MPI, start_mpi


@pytest.fixture
def comm() -> Iterator[MPI.Intracomm]:
    duplicate = start_mpi().Dup()
    yield duplicate
    duplicate.Free()


@pytest.fixture
def root(comm: MPI.Intracomm) -> Iterator[Path]:
    made = tempfile.mkdtemp(prefix="lepton_checkpoint_") if comm.rank == 0 else ""
    shared = Path(comm.bcast(made, root=0))
    yield shared / "checkpoints"
    comm.Barrier()
    if comm.rank == 0:
        shutil.rmtree(shared)
    comm.Barrier()
