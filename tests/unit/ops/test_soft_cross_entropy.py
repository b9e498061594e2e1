"""Cross entropy for shares of classes: against classes, numeric gradients and PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

from lepton_mpi.errors import DataError
from lepton_mpi.nn.losses import SoftmaxCrossEntropy
from lepton_mpi.ops.soft_cross_entropy import soft_cross_entropy_with_gradient
from lepton_mpi.ops.softmax_cross_entropy import softmax_cross_entropy_reference

SHAPES = [(0, 3), (1, 1), (5, 7), (2, 3, 5)]
CASES = pytest.mark.parametrize(("is_weighted", "smoothing"), [(False, 0.0), (True, 0.0), (False, 0.2), (True, 0.2)])


def made(shape, is_weighted, dtype=np.float64):
    random = np.random.default_rng(0)
    shares = random.random(shape)
    shares /= shares.sum(axis=-1, keepdims=True)
    weights = (random.random(shape[-1]) + 0.5).astype(dtype) if is_weighted else None
    return random.standard_normal(shape).astype(dtype), shares.astype(dtype), weights


@pytest.mark.parametrize("shape", SHAPES)
@CASES
def test_gradient(shape, is_weighted, smoothing):
    logits, shares, weights = made(shape, is_weighted)

    def loss():
        return soft_cross_entropy_with_gradient(logits, shares, 1.0, weights, smoothing)[0].loss

    _, gradient = soft_cross_entropy_with_gradient(logits, shares, 0.3, weights, smoothing)
    assert gradient.shape == shape
    for place in np.ndindex(shape):
        value, ends = logits[place], []
        for moved in (value + 1e-6, value - 1e-6):
            logits[place] = moved
            ends.append(loss())
        logits[place] = value
        assert gradient[place] == pytest.approx(0.3 * (ends[0] - ends[1]) / 2e-6, abs=1e-8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@CASES
def test_one_class_is_a_share_of_1_and_none_are_zeros(is_weighted, smoothing, dtype):
    logits, _, weights = made((6, 5), is_weighted, dtype)
    labels = np.array([0, 4, -100, 2, 2, -100])
    shares = (labels[:, None] == np.arange(5)).astype(dtype)
    found, gradient = soft_cross_entropy_with_gradient(logits, shares, 0.7, weights, smoothing)
    expected, expected_gradient = softmax_cross_entropy_reference(logits, labels, 0.7, weights, smoothing)
    assert (found.num_correct, found.num_counted) == (expected.num_correct, expected.num_counted)
    assert (found.loss, found.weight) == pytest.approx((expected.loss, expected.weight), rel=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-7)
    assert gradient.dtype == dtype


def test_a_mix_of_targets_has_the_mix_of_losses():
    logits, _, weights = made((6, 5), True)
    first, second, share = np.array([0, 1, 2, 3, 4, 0]), np.array([4, 4, 4, 2, 1, 0]), np.linspace(0, 1, 6)
    mixed = share[:, None] * np.eye(5)[first] + (1 - share[:, None]) * np.eye(5)[second]
    for row in range(6):
        one = slice(row, row + 1)
        ends = [softmax_cross_entropy_reference(logits[one], y[one], 1.0, weights, 0.1) for y in (first, second)]
        found = SoftmaxCrossEntropy(tuple(weights), 0.1)(logits[one], mixed[one], 1.0)
        for name in ("loss", "weight"):
            expected = share[row] * getattr(ends[0][0], name) + (1 - share[row]) * getattr(ends[1][0], name)
            assert getattr(found, name) == pytest.approx(expected)
        np.testing.assert_allclose(found.gradient, share[row] * ends[0][1] + (1 - share[row]) * ends[1][1], atol=1e-12)


@CASES
def test_follows_pytorch(is_weighted, smoothing):
    torch = pytest.importorskip("torch")
    logits, shares, weights = made((5, 7), is_weighted)
    found, gradient = soft_cross_entropy_with_gradient(logits, shares, 1.0, weights, smoothing)
    x = torch.tensor(logits, requires_grad=True)
    weight = None if weights is None else torch.tensor(weights)
    loss = torch.nn.functional.cross_entropy(x, torch.tensor(shares), weight, label_smoothing=smoothing, reduction="sum")
    loss.backward()
    assert found.loss == pytest.approx(float(loss.detach()), rel=1e-12)
    np.testing.assert_allclose(gradient, x.grad.numpy(), atol=1e-12)


def test_nan_and_impossible_classes():
    logits = np.array([[0.0, -np.inf, 1.0], [np.nan, 0.0, 0.0]])
    with np.errstate(invalid="ignore"):
        sums, gradient = soft_cross_entropy_with_gradient(logits, np.array([[0.5, 0.0, 0.5], [0.0, 0.0, 0.0]]), 1.0)
        assert np.isfinite(sums.loss) and np.isfinite(gradient).all() and sums.num_counted == 1
        assert np.isnan(soft_cross_entropy_with_gradient(logits, np.full((2, 3), 1 / 3), 1.0)[0].loss)


def test_what_does_not_fit_is_refused():
    logits = np.zeros((2, 3))
    with pytest.raises(ValueError, match="targets: expected shape"):
        soft_cross_entropy_with_gradient(logits, np.zeros((2, 2)), 1.0)
    with pytest.raises(ValueError, match="class_weights: expected shape"):
        soft_cross_entropy_with_gradient(logits, np.zeros((2, 3)), 1.0, np.ones(2))
    for bad in (-0.1, 1.5, np.nan):
        shares = np.zeros((2, 3))
        shares[1, 2] = bad
        with pytest.raises(DataError, match=r"target \[1, 2\]: expected a share in \[0, 1\]"):
            soft_cross_entropy_with_gradient(logits, shares, 1.0)
