"""Differentiable operations: central differences in float64 on odd shapes, no rows, refusals."""

import sys

import numpy as np
import pytest
from numeric_gradient import numeric_gradient

from lepton_mpi.ops.array_module import array_module
from lepton_mpi.ops.bias_relu import bias_relu
from lepton_mpi.ops.linear import linear, linear_backward_input, linear_backward_weight
from lepton_mpi.ops.relu import relu, relu_backward
from lepton_mpi.ops.softmax_cross_entropy import softmax_cross_entropy_with_gradient

SHAPES = [(1, 1, 1), (3, 5, 7), (17, 13, 2), (4, 1, 9)]


def away_from_zero(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Values on whose sides of the kink no difference quotient can fall."""
    return rng.uniform(0.1, 1.0, shape) * rng.choice([-1.0, 1.0], shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("has_bias", [False, True])
def test_linear_gradients(shape, has_bias):
    batch, inputs, outputs = shape
    rng = np.random.default_rng(0)
    x, W, dy = (rng.standard_normal(size) for size in ((batch, inputs), (outputs, inputs), (batch, outputs)))
    b = rng.standard_normal(outputs) if has_bias else None

    def loss() -> float:
        return float((linear(x, W, b) * dy).sum())

    np.testing.assert_allclose(linear_backward_input(dy, W), numeric_gradient(loss, x), rtol=1e-6, atol=1e-8)
    dW, db = rng.standard_normal(W.shape), rng.standard_normal(outputs) if has_bias else None
    dW_before, db_before = dW.copy(), None if db is None else db.copy()
    linear_backward_weight(dy, x, dW, db)
    np.testing.assert_allclose(dW - dW_before, numeric_gradient(loss, W), rtol=1e-6, atol=1e-8)
    if b is not None:
        np.testing.assert_allclose(db - db_before, numeric_gradient(loss, b), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtypes_are_kept(dtype):
    rng = np.random.default_rng(1)
    x, W, b = (rng.standard_normal(size).astype(dtype) for size in ((3, 5), (2, 5), 2))
    y = linear(x, W, b)
    _, dy = softmax_cross_entropy_with_gradient(y, np.array([0, 1, 1]), 1 / 3)
    for array in (y, relu(y), relu_backward(y, relu(y)), dy, linear_backward_input(dy, W)):
        assert array.dtype == dtype


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (17, 2)])
def test_relu_gradient(shape):
    rng = np.random.default_rng(2)
    x, dy = away_from_zero(rng, shape), rng.standard_normal(shape)
    dx = relu_backward(dy, relu(x))
    np.testing.assert_allclose(dx, numeric_gradient(lambda: float((relu(x) * dy).sum()), x), rtol=1e-6, atol=1e-8)


def test_relu_values():
    np.testing.assert_array_equal(relu(np.array([-1.0, 0.0, 2.0, np.nan])), [0.0, 0.0, 2.0, np.nan])
    np.testing.assert_array_equal(relu_backward(np.ones(3), np.array([0.0, 1.0, 0.0])), [0.0, 1.0, 0.0])


def test_bias_relu_is_bias_then_relu_in_place():
    rng = np.random.default_rng(3)
    y, b = rng.standard_normal((7, 5)).astype(np.float32), rng.standard_normal(5).astype(np.float32)
    y[2, 3] = np.nan
    expected = relu(y + b)
    bias_relu(y, b)
    np.testing.assert_array_equal(y, expected)


def test_bias_relu_gradients():
    rng = np.random.default_rng(4)
    x, W, dy = rng.standard_normal((6, 5)), rng.standard_normal((3, 5)), rng.standard_normal((6, 3))
    b = rng.standard_normal(3)

    def forward() -> np.ndarray:
        y = linear(x, W)
        bias_relu(y, b)
        return y

    dz = relu_backward(dy, forward())
    dW, db = np.zeros_like(W), np.zeros_like(b)
    linear_backward_weight(dz, x, dW, db)
    np.testing.assert_allclose(db, numeric_gradient(lambda: float((forward() * dy).sum()), b), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(dW, numeric_gradient(lambda: float((forward() * dy).sum()), W), rtol=1e-6, atol=1e-8)


def test_no_rows():
    x, W, b = np.zeros((0, 5), np.float32), np.ones((3, 5), np.float32), np.ones(3, np.float32)
    y = linear(x, W, b)
    bias_relu(y, b)
    assert y.shape == (0, 3)
    assert relu(y).shape == relu_backward(y, y).shape == (0, 3)
    labels = np.zeros(0, np.int64)
    sums, dy = softmax_cross_entropy_with_gradient(y, labels, 0.1)
    assert sums.loss == sums.weight == 0.0
    assert linear_backward_input(dy, W).shape == (0, 5)
    dW, db = np.full_like(W, 7), np.full_like(b, 7)
    linear_backward_weight(dy, x, dW, db)
    np.testing.assert_array_equal(dW, 7)
    np.testing.assert_array_equal(db, 7)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("x", lambda: linear(np.zeros((2, 4)), np.zeros((3, 5)))),
        ("W", lambda: linear(np.zeros((2, 5)), np.zeros(5))),
        ("b", lambda: linear(np.zeros((2, 5)), np.zeros((3, 5)), np.zeros(5))),
        ("dy", lambda: linear_backward_input(np.zeros((2, 4)), np.zeros((3, 5)))),
        ("x", lambda: linear_backward_weight(np.zeros((2, 3)), np.zeros((4, 5)), np.zeros((3, 5)))),
        ("dW", lambda: linear_backward_weight(np.zeros((2, 3)), np.zeros((2, 5)), np.zeros((5, 3)))),
        ("db", lambda: linear_backward_weight(np.zeros((2, 3)), np.zeros((2, 5)), np.zeros((3, 5)), np.zeros((1, 3)))),
        ("dy", lambda: relu_backward(np.zeros((2, 3)), np.zeros((2, 1)))),
        ("y", lambda: bias_relu(np.zeros(3), np.zeros(3))),
        ("b", lambda: bias_relu(np.zeros((2, 3)), np.zeros((1, 3)))),
    ],
)
def test_shapes_that_do_not_fit_are_refused(name, call):
    with pytest.raises(ValueError, match=f"^{name}: expected shape"):
        call()


def test_numpy_arrays_run_on_numpy():
    assert array_module(np.zeros(2)) is np
    assert "cupy" not in sys.modules
