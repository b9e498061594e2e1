"""PowerSGD: orthonormal factors, exact low ranks, warm start, residuals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from lepton_mpi.compress.low_rank import Factors, Matrix
from lepton_mpi.compress.powersgd import backproject, initial_q, matrix_shape, orthogonalise, project, reconstruct


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def low_rank(rows: int, columns: int, rank: int, seed: int = 0) -> np.ndarray:
    return normal(rows, rank, seed=seed) @ normal(rank, columns, seed=seed + 1)


class Rank:
    """One rank's factors and residual of one matrix."""

    def __init__(self, rows: int, columns: int, rank: int) -> None:
        self.factors = Factors([Matrix("w", 0, rows, columns)], [], [(0, rows * columns)], rank, seed=1)
        self.owed = np.zeros(rows * columns, np.float32)
        self.x = np.zeros(0, np.float32)


def exchange(ranks: list[Rank], gradients: list[np.ndarray]) -> list[np.ndarray]:
    """Do what all ranks do, with sums in float32 in the place of an exact all-reduce, and return the means."""
    for rank, g in zip(ranks, gradients, strict=True):
        rank.x = g.reshape(-1).copy()
        rank.factors.project(rank.x, rank.owed)
    for step in ("first", "second"):
        total = np.sum([getattr(rank.factors, step) for rank in ranks], axis=0, dtype=np.float32)
        for rank in ranks:
            getattr(rank.factors, step)[:] = total
            if step == "first":
                rank.factors.project_back(rank.x)
    for rank in ranks:
        rank.factors.rebuild(rank.x, rank.owed, 1 / len(ranks), 1 / len(ranks))
    return [rank.x.reshape(gradients[0].shape) for rank in ranks]


@pytest.mark.parametrize(
    "shape, rank, expected",
    [((10,), 1, None), ((), 1, None), ((64, 32), 4, (64, 32)), ((64, 3, 3, 3), 2, (64, 27)), ((4, 4), 2, None), ((1, 99), 1, None)],
)
def test_matrix_shape(shape, rank, expected):
    assert matrix_shape(shape, rank) == expected


@pytest.mark.parametrize("rows, rank", [(1, 1), (1, 3), (5, 5), (7, 3), (200, 8)])
def test_orthogonalise_gives_an_orthonormal_basis_of_the_columns(rows, rank):
    p = normal(rows, rank)
    basis = orthogonalise(p).astype(np.float64)
    kept = min(rows, rank)
    np.testing.assert_allclose(basis[:, :kept].T @ basis[:, :kept], np.eye(kept), atol=1e-6)
    np.testing.assert_allclose(basis @ (basis.T @ p), p, atol=1e-5)
    assert not basis[:, kept:].any()


@settings(max_examples=200, deadline=None)
@given(p=arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats(width=32)))
def test_orthogonalise_of_any_floats(p):
    basis = orthogonalise(p).astype(np.float64)
    if not np.isfinite(p).all():
        assert np.isnan(basis).all()
        return
    kept = min(p.shape)
    np.testing.assert_allclose(basis[:, :kept].T @ basis[:, :kept], np.eye(kept), atol=1e-6)


def test_columns_that_depend_on_others_are_replaced():
    p = np.zeros((6, 3), np.float32)
    p[:, 0] = p[:, 1] = [1, 2, 0, 0, 0, 1]
    basis = orthogonalise(p).astype(np.float64)
    np.testing.assert_allclose(basis.T @ basis, np.eye(3), atol=1e-6)


def test_nearly_dependent_columns_stay_orthogonal():
    p = np.tile(normal(50, 1), (1, 4)) + 1e-4 * normal(50, 4, seed=1)
    basis = orthogonalise(p).astype(np.float64)
    np.testing.assert_allclose(basis.T @ basis, np.eye(4), atol=1e-6)


def test_matrix_of_low_rank_is_exact_after_one_step():
    x = low_rank(60, 40, 3)
    p = orthogonalise(project(x, initial_q(7, "w", 40, 3)))
    np.testing.assert_allclose(reconstruct(p, backproject(x, p)), x, atol=1e-4)


def test_first_q_depends_on_seed_and_name_alone():
    q = initial_q(7, "w", 40, 3)
    assert q.shape == (40, 3) and q.dtype == np.float32
    np.testing.assert_array_equal(q, initial_q(7, "w", 40, 3))
    assert not np.array_equal(q, initial_q(8, "w", 40, 3))
    assert not np.array_equal(q, initial_q(7, "v", 40, 3))


def test_all_ranks_hold_the_same_bytes():
    ranks = [Rank(30, 20, 2) for _ in range(3)]
    for step in range(4):
        results = exchange(ranks, [normal(30, 20, seed=10 * step + i) for i in range(3)])
        for result in results[1:]:
            np.testing.assert_array_equal(result, results[0])


def test_warm_start_finds_the_best_rank():
    """With the same matrix every step the factors converge to its leading singular vectors."""
    rng = np.random.default_rng(3)
    left, right = np.linalg.qr(rng.standard_normal((50, 50)))[0], np.linalg.qr(rng.standard_normal((30, 30)))[0]
    x = ((left[:, :30] * 0.7 ** np.arange(30)) @ right).astype(np.float32)
    best = np.sqrt(sum(0.7 ** (2 * i) for i in range(4, 30)))
    rank = Rank(50, 30, 4)
    for _ in range(30):
        rank.owed[:] = 0
        received = exchange([rank], [x])[0]
    assert np.linalg.norm(x - received) < 1.01 * best


def test_delivered_sum_follows_the_gradients():
    ranks = [Rank(20, 15, 2) for _ in range(3)]
    delivered, total = np.zeros((20, 15)), np.zeros((20, 15))
    for step in range(200):
        gradients = [normal(20, 15, seed=1000 * i + step) + np.float32(0.2) for i in range(3)]
        total += np.mean(gradients, axis=0)
        delivered += exchange(ranks, gradients)[0]
    owed = np.mean([rank.owed for rank in ranks], axis=0).reshape(20, 15)
    np.testing.assert_allclose(delivered + owed, total, atol=1e-3)
    assert np.abs(owed).max() < np.abs(total).mean()


def test_gradient_of_zeros_does_not_end_the_exchange():
    rank = Rank(9, 8, 2)
    for _ in range(2):
        np.testing.assert_array_equal(exchange([rank], [np.zeros((9, 8), np.float32)])[0], 0)
    x = low_rank(9, 8, 1)
    for _ in range(3):
        rank.owed[:] = 0
        received = exchange([rank], [x])[0]
    np.testing.assert_allclose(received, x, atol=1e-4)
