"""A communicator of one rank for the checkpoint tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lepton_mpi.runtime.mpi import MPI, start_mpi


@pytest.fixture(scope="session")
def comm() -> Iterator[MPI.Intracomm]:
    duplicate = start_mpi().Dup()
    yield duplicate
    duplicate.Free()
