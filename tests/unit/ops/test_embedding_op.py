"""Rows of a table: values, the parts of shards, the gradient, refusals."""

import numpy as np
import pytest

from lepton_mpi import native
from lepton_mpi.ops.embedding import embedding, embedding_backward, embedding_backward_reference


@pytest.mark.parametrize("shape", [(0,), (7,), (3, 5), (0, 5)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_parts_of_shards_add_up(shape, dtype):
    rng = np.random.default_rng(0)
    W, ids = rng.standard_normal((11, 3)).astype(dtype), rng.integers(0, 11, shape)
    y = embedding(ids, W)
    np.testing.assert_array_equal(y, W[ids])
    parts = [embedding(ids, W[first:last], first) for first, last in ((0, 4), (4, 5), (5, 11))]
    np.testing.assert_array_equal(sum(parts), y)
    assert y.dtype == dtype


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradient_is_the_adjoint(dtype):
    rng = np.random.default_rng(1)
    W, ids = rng.standard_normal((5, 7)).astype(dtype), rng.integers(-1, 9, (4, 6))
    dy, dW = rng.standard_normal((4, 6, 7)).astype(dtype), rng.standard_normal((5, 7)).astype(dtype)
    before = dW.copy()
    embedding_backward(dy, ids, dW, 2)
    left, right = (embedding(ids, W, 2) * dy).sum(), (W * (dW - before)).sum()
    assert left == pytest.approx(right, rel=1e-4 if dtype == np.float32 else 1e-12)


def test_native_path_is_the_reference_bit_for_bit():
    rng = np.random.default_rng(2)
    ids, dy = rng.integers(0, 20, 500), rng.standard_normal((500, 13)).astype(np.float32)
    found, expected = np.ones((9, 13), np.float32), np.ones((9, 13), np.float32)
    embedding_backward(dy, ids, found, 4)
    embedding_backward_reference(dy, ids, expected, 4)
    np.testing.assert_array_equal(found, expected)


def test_gradient_of_a_table_that_is_not_contiguous():
    whole = np.zeros((6, 4), np.float32)
    embedding_backward(np.ones((2, 2), np.float32), np.array([1, 1]), whole[:, ::2])
    np.testing.assert_array_equal(whole[1], [2, 0, 2, 0])


def test_refusals():
    W, ids = np.zeros((5, 3), np.float32), np.array([0, 1])
    with pytest.raises(ValueError, match="ids: expected int64, received int32"):
        embedding(ids.astype(np.int32), W)
    with pytest.raises(ValueError, match="W: expected shape"):
        embedding(ids, W[0])
    with pytest.raises(ValueError, match="dy: expected shape"):
        embedding_backward(np.zeros((2, 4), np.float32), ids, W)
    with pytest.raises(ValueError, match="table: expected"):
        native.embedding_add(np.zeros(6, np.float32), ids, 0, np.zeros(7, np.float32), 3)
