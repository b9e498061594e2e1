"""Norms of arrays that ranks hold parts of: right, equal on all ranks, and exact ones the same however they are cut."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.train.norms import norms_of_parts

SIZES = [1, 1000, 4097, 5, 300]


def arrays() -> list[NDArray[np.float32]]:
    """Return arrays of very different magnitudes, within one too; one is all zero."""
    random = np.random.default_rng(3)
    scales = [1e-20, 1.0, 1e10, 0.0, 1e-3]
    made = [random.standard_normal(n) * scale for n, scale in zip(SIZES, scales, strict=True)]
    made[1] *= 10.0 ** random.integers(-9, 1, 1000)
    return [values.astype(np.float32) for values in made]


def cut(comm: MPI.Intracomm, seed: int) -> list[tuple[int, NDArray[np.float32]]]:
    """Return this rank's parts of a random cut, and of an array some ranks have nothing."""
    random, parts = np.random.default_rng(seed), []
    for i, values in enumerate(arrays()):
        bounds = np.sort(random.integers(0, values.size + 1, 6))
        for part, owner in zip(np.split(values, bounds), random.integers(0, comm.size, 7), strict=True):
            if owner == comm.rank:
                parts.append((i, part))
    return parts


@pytest.mark.mpi
@pytest.mark.parametrize("exact", [False, True])
def test_norms(comm: MPI.Intracomm, exact: bool) -> None:
    expected = [math.sqrt(math.fsum(float(x) ** 2 for x in values)) for values in arrays()]
    found = [norms_of_parts(comm, cut(comm, seed), SIZES, exact) for seed in range(4)]
    for norms in found:
        np.testing.assert_allclose(norms, expected, rtol=1e-14)
        assert len(set(comm.allgather(norms.tobytes()))) == 1
        if exact:
            assert norms.tobytes() == norms_of_parts(MPI.COMM_SELF, list(enumerate(arrays())), SIZES, True).tobytes()


@pytest.mark.mpi
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_has_no_finite_norm(comm: MPI.Intracomm, bad: float) -> None:
    parts = [(0, np.array([1.0, bad], np.float32)), (1, np.array([2.0], np.float32))] if comm.rank == comm.size - 1 else []
    norms = norms_of_parts(comm, parts, [2, 1], True)
    assert norms.tolist() == [np.inf, 2.0]
    assert not np.isfinite(norms_of_parts(comm, parts, [2, 1], False)[0])
