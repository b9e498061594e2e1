"""Sums in rank order have the bits of a NumPy sum from left to right, on every rank; gathered columns are whole."""

from __future__ import annotations

import numpy as np
import pytest

from lepton_mpi.comm import reduction, waiting
from lepton_mpi.comm.reduction import gather_features, sum_in_rank_order
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.runtime.ranges import split_range


def values(rank: int, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Return numbers of very different size, so that another order would give other bits."""
    random = np.random.default_rng([rank, *shape])
    return (random.standard_normal(shape) * np.exp2(random.integers(-20, 20, shape))).astype(dtype)


@pytest.fixture(params=["wait", "pause"])
def _waiting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait as on free cores, and as where ranks outnumber cores."""
    monkeypatch.setattr(waiting, "is_oversubscribed", lambda: request.param == "pause")


@pytest.mark.mpi
@pytest.mark.usefixtures("_waiting")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (1,), (2,), (3,), (5,), (1000,), (1, 7), (100_003,), (33, 1001), (0,), (0, 9)], ids=str)
def test_sum_has_the_bits_of_a_sum_from_left_to_right(comm: MPI.Intracomm, shape: tuple[int, ...], dtype: type) -> None:
    x = values(comm.rank, shape, dtype)
    kept = x.copy()
    expected = values(0, shape, dtype)
    for rank in range(1, comm.size):
        expected = expected + values(rank, shape, dtype)
    total = sum_in_rank_order(comm, x)
    assert total.shape == shape
    assert total.dtype == dtype
    assert total.tobytes() == expected.tobytes()
    assert x.tobytes() == kept.tobytes()
    assert len(set(comm.allgather(total.tobytes()))) == 1


@pytest.mark.mpi
def test_both_ways_of_summing_agree(comm: MPI.Intracomm, monkeypatch: pytest.MonkeyPatch) -> None:
    x = values(comm.rank, (501,), np.float32)
    gathered = sum_in_rank_order(comm, x)
    monkeypatch.setattr(reduction, "_GATHER_NBYTES", 0)
    assert sum_in_rank_order(comm, x).tobytes() == gathered.tobytes()


@pytest.mark.mpi
@pytest.mark.parametrize("batch", [0, 1, 6])
@pytest.mark.parametrize("num_features", [4, 11])
def test_gathered_columns_are_in_rank_order(comm: MPI.Intracomm, batch: int, num_features: int) -> None:
    whole = np.arange(batch * num_features, dtype=np.float32).reshape(batch, num_features)
    ranges = [split_range(num_features, comm.size, rank) for rank in range(comm.size)]
    own = whole[:, slice(*ranges[comm.rank])]  # not contiguous
    found = gather_features(comm, own, [stop - start for start, stop in ranges])
    assert np.array_equal(found, whole)
    assert found.dtype == np.float32
