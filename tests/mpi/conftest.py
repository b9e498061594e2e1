"""What tests on several ranks share: a communicator of their own, a folder all ranks see, and the grids of so many ranks."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lepton_mpi.comm.grid import GridShape
from lepton_mpi.runtime.mpi import MPI, start_mpi


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let modules that start mpirun themselves run without it: pytest-mpi skips all tests of a folder named mpi there."""
    for item in items:
        if getattr(getattr(item, "module", None), "STARTS_MPIRUN", False):
            item.own_markers = [mark for mark in item.own_markers if mark.name != "skip"]


@pytest.fixture
def comm() -> Iterator[MPI.Intracomm]:
    duplicate = start_mpi().Dup()
    yield duplicate
    duplicate.Free()


@pytest.fixture
def folder(comm: MPI.Intracomm) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as own:
        yield Path(comm.bcast(own))
        comm.Barrier()


@pytest.fixture
def grid_shapes(comm: MPI.Intracomm) -> list[GridShape]:
    """All grids of as many ranks as there are."""
    sizes = range(1, comm.Get_size() + 1)
    shapes = [GridShape(data, stages, shards) for data in sizes for stages in sizes for shards in sizes]
    return [shape for shape in shapes if shape.num_ranks == comm.Get_size()]
