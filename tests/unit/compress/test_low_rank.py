"""The kernels of low-rank factors against NumPy, on runs that cut matrices anywhere; a step of packed factors."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from lepton_mpi import native
from lepton_mpi.compress import powersgd
from lepton_mpi.compress.low_rank import Factors, Matrix
from lepton_mpi.errors import CodecError

SHAPES = [(1, 1, 1), (5, 3, 2), (7, 16, 1), (13, 33, 4), (3, 1000, 5), (64, 27, 4)]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def cuts(size: int) -> list[tuple[int, int]]:
    """Return runs that end within rows."""
    bounds = sorted({0, size // 3, size // 2 + 1 if size > 2 else 0, size})
    return [(low, high) for low, high in pairwise(bounds) if low < high]


@pytest.mark.parametrize("shape", SHAPES)
def test_projections_of_runs_add_up_to_those_of_the_matrix(shape):
    rows, columns, rank = shape
    x, a, b = normal(rows, columns), normal(rank, rows, seed=1), normal(rank, columns, seed=2)
    to_rows, to_columns = np.zeros_like(a), np.zeros_like(b)
    for low, high in cuts(x.size):
        run = x.reshape(-1)[low:high]
        native.low_rank_project_rows(shape, run, low, b.reshape(-1), to_rows.reshape(-1))
        native.low_rank_project_columns(shape, run, low, a.reshape(-1), to_columns.reshape(-1))
    np.testing.assert_allclose(to_rows, b @ x.T, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(to_columns, a @ x, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_rebuilt_run_has_the_bits_of_the_rebuilt_matrix(shape):
    rows, columns, rank = shape
    x, a, b = normal(rows, columns), normal(rank, rows, seed=1), normal(rank, columns, seed=2)
    whole, owed = x.copy(), np.zeros_like(x)
    native.low_rank_rebuild(shape, whole.reshape(-1), 0, a.reshape(-1), b.reshape(-1), 0.5, owed.reshape(-1), 0.25)
    np.testing.assert_allclose(whole, 0.5 * (a.T @ b), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(owed, x - 0.25 * (a.T @ b), rtol=1e-5, atol=1e-5)
    for low, high in cuts(x.size):
        run = x.reshape(-1)[low:high].copy()
        native.low_rank_rebuild(shape, run, low, a.reshape(-1), b.reshape(-1), 0.5, None, 0.25)
        np.testing.assert_array_equal(run, whole.reshape(-1)[low:high])


def test_what_is_owed_stays_where_the_rest_is_not_finite():
    x, residual = np.array([1, np.inf, 3], np.float32), np.array([7, 8, 9], np.float32)
    native.low_rank_rebuild((1, 3, 1), x, 0, np.ones(1, np.float32), np.array([0.5, 1, np.inf], np.float32), 1.0, residual, 1.0)
    np.testing.assert_array_equal(residual, [0.5, 8, 9])


@pytest.mark.parametrize("rows, rank", [(1, 1), (1, 3), (5, 5), (7, 3), (1000, 8)])
def test_orthogonalise_has_the_bits_of_its_reference(rows, rank):
    p = normal(rows, rank)
    p[:, rank // 2] = p[:, 0]  # depends on another
    factor = np.ascontiguousarray(p.T).reshape(-1)
    native.orthogonalise(factor, rank)
    np.testing.assert_array_equal(factor.reshape(rank, rows), powersgd.orthogonalise(p).T)


@settings(max_examples=200, deadline=None)
@given(p=arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats(width=32)))
def test_orthogonalise_of_any_floats_has_the_bits_of_its_reference(p):
    factor = np.ascontiguousarray(p.T).reshape(-1)
    native.orthogonalise(factor, p.shape[1])
    np.testing.assert_array_equal(factor.reshape(p.shape[::-1]), powersgd.orthogonalise(p).T)


@pytest.mark.parametrize("keeps_rows", [False, True])
def test_ranks_that_divide_a_flat_array_do_what_one_does(keeps_rows):
    """Two ranks with half of the elements each, against one with all."""
    matrices = [Matrix("v", 10, 12, 20, keeps_rows), Matrix("w", 260, 9, 31, not keeps_rows)]
    exact, size = [(0, 10), (250, 260), (539, 550)], 550
    halves = [[(0, 100), (300, 320)], [(100, 300), (320, size)]]
    alone = Factors(matrices, exact, [(0, size)], 2, seed=3)
    ranks = [Factors(matrices, exact, runs, 2, seed=3) for runs in halves]
    owed_alone, owed = np.zeros(size, np.float32), np.zeros(size, np.float32)
    for step in range(3):
        g = normal(size, seed=step)
        one, shared = g.copy(), g.copy()
        alone.project(one, owed_alone)
        for rank in ranks:
            rank.project(shared, owed)
        for rank in ranks:
            rank.first[:] = ranks[0].first + ranks[1].first if rank is ranks[0] else ranks[0].first
        np.testing.assert_allclose(ranks[0].first, alone.first, atol=1e-4)
        for factors, x in [(alone, one), *((rank, shared) for rank in ranks)]:
            factors.project_back(x)
        total = ranks[0].second + ranks[1].second
        for rank in ranks:
            rank.second[:] = total
        for factors, x, residual in [(alone, one, owed_alone), *((rank, shared, owed) for rank in ranks)]:
            factors.rebuild(x, residual, 1.0, 1.0)
        np.testing.assert_allclose(shared, one, atol=1e-3)
        np.testing.assert_allclose(owed, owed_alone, atol=1e-3)
        for low, high in exact:
            np.testing.assert_array_equal(one[low:high], g[low:high])
    other = Factors(matrices, exact, [(0, size)], 2, seed=4)
    other.load(alone.state())
    np.testing.assert_array_equal(other.kept(1), alone.kept(1))


def test_a_step_follows_the_reference():
    x, rank = normal(12, 20), 3
    factors = Factors([Matrix("w", 0, 12, 20)], [], [(0, 240)], rank, seed=3)
    flat = x.reshape(-1).copy()
    p = powersgd.orthogonalise(powersgd.project(x, powersgd.initial_q(3, "w", 20, rank)))
    expected = powersgd.reconstruct(p, powersgd.backproject(x, p))
    factors.project(flat, None)
    factors.project_back(flat)
    factors.rebuild(flat, None, 2.0, 1.0)
    np.testing.assert_allclose(flat.reshape(12, 20), 2 * expected, atol=1e-4)


def test_a_matrix_that_is_not_finite_keeps_what_is_owed_and_the_factor():
    factors = Factors([Matrix("v", 0, 8, 8), Matrix("w", 64, 8, 8)], [(128, 130)], [(0, 130)], 2, seed=3)
    x, residual = normal(130), normal(130, seed=1)
    before, kept = residual.copy(), factors.state()
    x[5], x[129] = np.nan, np.inf
    with np.errstate(invalid="ignore"):
        factors.project(x, residual)
        factors.project_back(x)
        factors.rebuild(x, residual, 1.0, 1.0)
    assert np.isnan(x[:64]).all()
    assert np.isfinite(x[64:129]).all()
    np.testing.assert_array_equal(residual[:64], before[:64])
    assert residual[128] == 0
    assert residual[129] == before[129]
    np.testing.assert_array_equal(factors.state()[:16], kept[:16])
    assert (factors.state()[16:] != kept[16:]).any()


def test_what_does_not_fit_is_refused():
    f = np.zeros(8, np.float32)
    with pytest.raises(CodecError, match="rank of powersgd"):
        Factors([], [], [], 0, seed=0)
    with pytest.raises(CodecError, match="shapes or rank differ"):
        Factors([], [], [], 1, seed=0).load(f)
    for call, message in [
        (lambda: native.low_rank_project_rows((4, 2, 2), f, 1, f[:4], f), "the run ends outside the matrix"),
        (lambda: native.low_rank_project_columns((4, 2, 2), f, 0, f, f), "column_factor: expected 4 values"),
        (lambda: native.low_rank_rebuild((4, 2, 2), f, 0, f[:4], f[:4], 1.0, None, 1.0), "row_factor: expected 8 values"),
        (lambda: native.low_rank_rebuild((4, 2, 2), f, 0, f, f[:4], 1.0, f[:3], 1.0), "residual: expected 8 values"),
        (lambda: native.orthogonalise(f, 3), "expected whole vectors"),
        (lambda: native.orthogonalise(f, 0), "expected whole vectors"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
