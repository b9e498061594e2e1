"""The losses of the tasks: gradients, counts, weights, no rows, refusals."""

import numpy as np
import pytest

from lepton_mpi.errors import ConfigError, DataError
from lepton_mpi.nn.loss import Loss
from lepton_mpi.nn.losses import BayesianPersonalisedRanking, MeanSquaredError, SigmoidCrossEntropy, SoftmaxCrossEntropy

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, (2, 5))
LABELS[1, 1:3] = -100
CASES = [
    (SoftmaxCrossEntropy(), (4, 3), np.array([0, 2, 1, -100])),
    (SoftmaxCrossEntropy((1.0, 0.0, 2.5), 0.2), (2, 5, 3), LABELS),
    (SigmoidCrossEntropy(), (3, 2), RNG.uniform(0, 1, (3, 2)).astype(np.float32)),
    (SigmoidCrossEntropy(), (3, 1), np.array([0, 1, 1], np.float32)),
    (MeanSquaredError(), (3, 2), RNG.standard_normal((3, 2)).astype(np.float32)),
    (MeanSquaredError(), (3, 1), RNG.standard_normal(3).astype(np.float32)),
    (MeanSquaredError(), (2, 5, 3), RNG.standard_normal((2, 5, 3)).astype(np.float32)),
    (BayesianPersonalisedRanking(), (5, 2), None),
]


@pytest.mark.parametrize(("loss", "shape", "target"), CASES)
def test_the_gradient_is_factor_times_that_of_the_loss(loss: Loss, shape, target):
    output, step = np.random.default_rng(1).standard_normal(shape) * 2, 1e-6
    result = loss(output, target, 0.3)
    for index in np.ndindex(*shape):
        above, below = output.copy(), output.copy()
        above[index] += step
        below[index] -= step
        difference = loss(above, target, 0.0).loss - loss(below, target, 0.0).loss
        assert result.gradient[index] == pytest.approx(0.3 * difference / (2 * step), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize(("loss", "shape", "target"), CASES)
def test_float32_agrees_with_float64_and_parts_add_up(loss: Loss, shape, target):
    output = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    kept = output.copy()
    result, wide = loss(output, target, 0.3), loss(output.astype(np.float64), target, 0.3)
    assert result.gradient.dtype == np.float32 and result.gradient.shape == output.shape
    np.testing.assert_array_equal(output, kept)
    np.testing.assert_allclose(result.gradient, wide.gradient, rtol=1e-5, atol=1e-6)
    assert (result.loss, result.weight) == pytest.approx((wide.loss, wide.weight), rel=1e-6)
    assert (result.num_correct, result.num_counted) == (wide.num_correct, wide.num_counted)
    parts = [loss(output[rows], None if target is None else target[rows], 0.3) for rows in (slice(0, 1), slice(1, None))]
    assert sum(part.loss for part in parts) == pytest.approx(result.loss)
    assert sum(part.weight for part in parts) == pytest.approx(result.weight)
    for name in ("num_correct", "num_counted"):
        assert sum(getattr(part, name) for part in parts) == getattr(result, name)
    np.testing.assert_array_equal(np.concatenate([part.gradient for part in parts]), result.gradient)


@pytest.mark.parametrize(("loss", "shape", "target"), CASES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_samples(loss: Loss, shape, target, dtype):
    result = loss(np.zeros((0, *shape[1:]), dtype), None if target is None else target[:0], 0.3)
    assert (result.loss, result.weight, result.num_correct, result.num_counted) == (0, 0, 0, 0)
    assert result.gradient.shape == (0, *shape[1:]) and result.gradient.dtype == dtype


@pytest.mark.parametrize(("loss", "shape", "target"), CASES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_is_not_hidden(loss: Loss, shape, target, dtype):
    output = np.zeros(shape, dtype)
    output[(0,) * len(shape)] = np.nan
    result = loss(output, target, 1.0)
    assert np.isnan(result.loss) and np.isnan(result.gradient).any()
    assert result.num_correct <= max(0, result.num_counted - 1)


def test_what_counts_as_right():
    classes = SoftmaxCrossEntropy((1.0, 0.0, 2.5))(np.eye(3)[[0, 1, 2, 0, 1]], np.array([0, 1, 2, 2, -100]), 1.0)
    assert (classes.weight, classes.num_correct, classes.num_counted) == (6.0, 2, 3)
    answers = SigmoidCrossEntropy()(np.array([[1.0], [-1.0], [1.0], [0.0]]), np.array([1, 1, 0, 0], np.float32), 1.0)
    assert (answers.weight, answers.num_correct, answers.num_counted) == (4.0, 2, 4)
    values = MeanSquaredError()(np.array([[1.0, 2.0], [3.0, 5.0]]), np.ones((2, 2), np.float32), 1.0)
    assert (values.loss, values.weight, values.num_correct, values.num_counted) == (21.0, 4.0, 0, 0)
    pairs = BayesianPersonalisedRanking()(np.array([[2.0, 1.0], [1.0, 2.0], [1.0, 1.0]]), None, 1.0)
    assert (pairs.weight, pairs.num_correct, pairs.num_counted) == (3.0, 1, 3)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_smoothing_out_of_range_is_refused(smoothing):
    with pytest.raises(ConfigError, match=r"label smoothing: expected a number in \[0, 1\), got"):
        SoftmaxCrossEntropy(label_smoothing=smoothing)


@pytest.mark.parametrize("weight", [-1.0, float("inf"), float("nan")])
def test_class_weights_out_of_range_are_refused(weight):
    with pytest.raises(ConfigError, match=r"class weights: expected finite numbers of at least 0, got .* for class 1"):
        SoftmaxCrossEntropy((1.0, weight))


def test_targets_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"class_weights: expected shape \(3\), received \(2,\)"):
        SoftmaxCrossEntropy((1.0, 2.0))(np.zeros((2, 3)), np.zeros(2, np.int64), 1.0)
    with pytest.raises(DataError, match=r"label \[1\]: expected a class in \[0, 3\).* received 3"):
        SoftmaxCrossEntropy()(np.zeros((2, 3)), np.array([0, 3]), 1.0)
    with pytest.raises(DataError, match=r"target \[1, 0\]: expected a number in \[0, 1\], received 2"):
        SigmoidCrossEntropy()(np.zeros((2, 1)), np.array([0, 2], np.float32), 1.0)
    for loss in (SigmoidCrossEntropy(), MeanSquaredError()):
        with pytest.raises(ValueError, match=r"target: expected shape \(2, 3\) as the output, received \(2,\)"):
            loss(np.zeros((2, 3)), np.zeros(2, np.float32), 1.0)
