"""Losses: central differences in float64, PyTorch, the C++ kernel against NumPy, no rows, refusals."""

import numpy as np
import pytest
from numeric_gradient import numeric_gradient

from lepton_mpi import native
from lepton_mpi.errors import DataError
from lepton_mpi.ops.bpr import bpr, bpr_backward
from lepton_mpi.ops.sigmoid_cross_entropy import sigmoid_cross_entropy, sigmoid_cross_entropy_backward
from lepton_mpi.ops.softmax_cross_entropy import (
    IGNORED_LABEL,
    softmax_cross_entropy,
    softmax_cross_entropy_reference,
    softmax_cross_entropy_with_gradient,
)
from lepton_mpi.ops.softplus import logistic, softplus
from lepton_mpi.ops.squared_error import squared_error, squared_error_backward

SHAPES = [(1, 1), (1, 2), (5, 3), (7, 63), (3, 64), (13, 131), (2, 2051)]
OPTIONS = [(False, 0.0), (True, 0.0), (False, 0.1), (True, 0.3)]


def example(shape, is_weighted, dtype, seed=0):
    """Logits, labels of which a third is ignored, and class weights with a zero among them."""
    rng = np.random.default_rng(seed)
    num_labels, num_classes = shape
    labels = rng.integers(0, num_classes, num_labels)
    labels[1::3] = IGNORED_LABEL
    weights = rng.uniform(0.2, 3, num_classes).astype(dtype)
    weights[1::5] = 0
    return (rng.standard_normal(shape) * 4).astype(dtype), labels, weights if is_weighted else None


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (5, 3), (7, 11)])
@pytest.mark.parametrize(("is_weighted", "smoothing"), OPTIONS)
def test_softmax_cross_entropy_gradient(shape, is_weighted, smoothing):
    logits, labels, weights = example(shape, is_weighted, np.float64)
    sums, dlogits = softmax_cross_entropy_with_gradient(logits, labels, 0.3, weights, smoothing)
    assert sums == softmax_cross_entropy(logits, labels, weights, smoothing)
    expected = numeric_gradient(lambda: 0.3 * softmax_cross_entropy(logits, labels, weights, smoothing).loss, logits)
    np.testing.assert_allclose(dlogits, expected, rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(dlogits[labels == IGNORED_LABEL], 0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("is_weighted", "smoothing"), OPTIONS)
def test_softmax_cross_entropy_kernel_is_the_reference(shape, is_weighted, smoothing):
    logits, labels, weights = example(shape, is_weighted, np.float32)
    if len(logits) > 2:
        logits[2, labels[2]] = 20.0  # one that is right for sure
    kept = logits.copy()
    sums, dlogits = softmax_cross_entropy_with_gradient(logits, labels, 0.3, weights, smoothing)
    wide = None if weights is None else weights.astype(np.float64)
    expected, expected_dlogits = softmax_cross_entropy_reference(logits.astype(np.float64), labels, 0.3, wide, smoothing)
    assert (sums.num_correct, sums.num_counted) == (expected.num_correct, expected.num_counted)
    assert (sums.loss, sums.weight) == pytest.approx((expected.loss, expected.weight), rel=1e-6, abs=1e-7)
    assert dlogits.dtype == np.float32
    np.testing.assert_allclose(dlogits, expected_dlogits, rtol=1e-5, atol=3e-7)
    assert softmax_cross_entropy(logits, labels, weights, smoothing) == sums
    np.testing.assert_array_equal(logits, kept)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("is_weighted", "smoothing"), OPTIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_cross_entropy_is_that_of_pytorch(shape, is_weighted, smoothing, dtype):
    torch = pytest.importorskip("torch")
    logits, labels, weights = example(shape, is_weighted, dtype, seed=1)
    if is_weighted:
        weights += 0.1  # PyTorch's mean is NaN where all weights are zero
    sums, dlogits = softmax_cross_entropy_with_gradient(logits, labels, 1.0, weights, smoothing)
    x = torch.tensor(logits, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(
        x, torch.tensor(labels), None if weights is None else torch.tensor(weights), label_smoothing=smoothing
    )
    loss.backward()
    assert sums.loss / sums.weight == pytest.approx(loss.item(), rel=1e-5, abs=1e-6)
    np.testing.assert_allclose(dlogits / sums.weight, x.grad.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_cross_entropy_values(dtype):
    logits = np.array([[[0, 0], [1000, -1000]], [[-1000, 1000], [1, 2]]], dtype)
    labels = np.array([[0, 0], [0, IGNORED_LABEL]])
    sums, dlogits = softmax_cross_entropy_with_gradient(logits, labels, 0.5)
    assert sums.loss == pytest.approx(np.log(2.0) + 0.0 + 2000.0)
    assert (sums.weight, sums.num_counted) == (3.0, 3)
    assert sums.num_correct == 2  # of equal logits, the first is the answer
    np.testing.assert_allclose(dlogits, [[[-0.25, 0.25], [0, 0]], [[-0.5, 0.5], [0, 0]]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 1, 64, 70])
def test_logits_that_are_not_finite_show_in_the_loss(dtype, smoothing, bad, place):
    logits = np.zeros((2, 71), dtype)
    logits[0, place] = bad
    with np.errstate(invalid="ignore"):
        sums, dlogits = softmax_cross_entropy_with_gradient(logits, np.array([1, 1]), 1.0, None, smoothing)
    assert np.isnan(sums.loss) and np.isnan(dlogits[0]).any()
    assert (sums.num_correct, sums.num_counted) == (0, 2)
    assert softmax_cross_entropy(logits[1:], np.array([1]), None, smoothing).loss == pytest.approx(np.log(71.0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_classes_that_are_impossible(dtype):
    logits = np.array([[0.0, 0.0, -np.inf]], dtype)
    assert softmax_cross_entropy(logits, np.array([0])).loss == pytest.approx(np.log(2.0))
    assert softmax_cross_entropy(logits, np.array([2])).loss == np.inf
    weights = np.array([1, 1, 0], dtype)
    for smoothing, expected in ((0.0, 0.0), (0.3, 0.2 * np.log(2.0))):
        sums = softmax_cross_entropy(logits, np.array([2]), weights, smoothing)
        assert sums.loss == pytest.approx(expected)
        assert (sums.weight, sums.num_counted) == (0.0, 0)


def test_logits_of_any_layout():
    logits, labels, _ = example((6, 10), False, np.float32)
    received = softmax_cross_entropy_with_gradient(logits[::2, ::3], labels[::2] % 4, 0.3)
    expected = softmax_cross_entropy_with_gradient(logits[::2, ::3].copy(), labels[::2] % 4, 0.3)
    assert received[0] == expected[0]
    np.testing.assert_array_equal(received[1], expected[1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_labels_that_cannot_be_are_refused(dtype):
    logits = np.zeros((2, 3, 4), dtype)
    for bad in (4, -1, 2**40):
        labels = np.array([[0, 1, 2], [3, IGNORED_LABEL, bad]])
        with pytest.raises(DataError, match=rf"label \[1, 2\]: expected a class in \[0, 4\), or -100 for none, received {bad}"):
            softmax_cross_entropy(logits, labels)
        with pytest.raises(DataError, match="expected a class"):
            softmax_cross_entropy_with_gradient(logits, labels, 1.0)


def test_the_kernel_refuses_arrays_that_do_not_fit():
    logits, labels = np.zeros(6, np.float32), np.zeros(2, np.int64)
    for bad, name in (
        ((logits[:5], labels, 3, None, 0.0, 1.0, None), "logits: expected 6 values, received 5"),
        ((logits, labels, 3, logits[:2], 0.0, 1.0, None), "class_weights: expected 3 values, received 2"),
        ((logits, labels, 3, None, 0.0, 1.0, np.zeros(7, np.float32)), "dlogits: expected 6 values, received 7"),
    ):
        with pytest.raises(ValueError, match=name):
            native.softmax_cross_entropy(*bad)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 2)])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_sigmoid_cross_entropy_gradient(shape, is_weighted):
    rng = np.random.default_rng(2)
    logits, targets = rng.standard_normal(shape) * 3, rng.uniform(0, 1, shape)
    weight = rng.uniform(0.5, 3, shape[1]) if is_weighted else None
    dlogits = sigmoid_cross_entropy_backward(logits, targets, 0.3, weight)
    expected = numeric_gradient(lambda: 0.3 * sigmoid_cross_entropy(logits, targets, weight), logits)
    np.testing.assert_allclose(dlogits, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("is_weighted", [False, True])
def test_sigmoid_cross_entropy_is_that_of_pytorch(is_weighted):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    logits, targets = (rng.standard_normal((17, 3)) * 20).astype(np.float32), rng.uniform(0, 1, (17, 3)).astype(np.float32)
    weight = np.array([0.5, 1, 7], np.float32) if is_weighted else None
    x = torch.tensor(logits, requires_grad=True)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        x, torch.tensor(targets), pos_weight=None if weight is None else torch.tensor(weight), reduction="sum"
    )
    loss.backward()
    assert sigmoid_cross_entropy(logits, targets, weight) == pytest.approx(loss.item(), rel=1e-5)
    received = sigmoid_cross_entropy_backward(logits, targets, 1.0, weight)
    assert received.dtype == np.float32
    np.testing.assert_allclose(received, x.grad.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bad", [-0.1, 1.5, np.nan])
def test_targets_that_are_no_probabilities_are_refused(bad):
    targets = np.zeros((2, 3), np.float32)
    targets[1, 2] = bad
    for call in (sigmoid_cross_entropy, lambda x, t: sigmoid_cross_entropy_backward(x, t, 1.0)):
        with pytest.raises(DataError, match=r"target \[1, 2\]: expected a number in \[0, 1\], received"):
            call(np.zeros((2, 3), np.float32), targets)


def test_softplus_and_logistic_do_not_overflow():
    x = np.array([-1000.0, -1.0, 0.0, 2.0, 1000.0, np.nan])
    with np.errstate(over="raise"):
        np.testing.assert_allclose(softplus(x), [0, np.log1p(np.exp(-1)), np.log(2), np.log1p(np.exp(2)), 1000, np.nan])
        np.testing.assert_allclose(logistic(x), [0, 1 / (1 + np.e), 0.5, 1 / (1 + np.exp(-2)), 1, np.nan])


@pytest.mark.parametrize("shape", [(1,), (5, 1), (3, 4, 2)])
def test_squared_error_gradient(shape):
    rng = np.random.default_rng(4)
    outputs, targets = rng.standard_normal(shape), rng.standard_normal(shape)
    assert squared_error(outputs, targets) == pytest.approx(sum((o - t) ** 2 for o, t in zip(outputs.flat, targets.flat)))  # noqa: B905
    expected = numeric_gradient(lambda: 0.3 * squared_error(outputs, targets), outputs)
    np.testing.assert_allclose(squared_error_backward(outputs, targets, 0.3), expected, rtol=1e-6, atol=1e-8)
    assert squared_error_backward(outputs.astype(np.float32), targets, 0.3).dtype == np.float32


@pytest.mark.parametrize("num_pairs", [1, 7])
def test_bpr_gradient(num_pairs):
    scores = np.random.default_rng(5).standard_normal((num_pairs, 2)) * 5
    assert bpr(scores) == pytest.approx(-np.log(1 / (1 + np.exp(scores[:, 1] - scores[:, 0]))).sum())
    expected = numeric_gradient(lambda: 0.3 * bpr(scores), scores)
    np.testing.assert_allclose(bpr_backward(scores, 0.3), expected, rtol=1e-6, atol=1e-8)
    assert bpr_backward(scores.astype(np.float32), 0.3).dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_rows_have_no_loss(dtype):
    none, labels = np.zeros((0, 2), dtype), np.zeros(0, np.int64)
    sums, dlogits = softmax_cross_entropy_with_gradient(none, labels, 1.0, np.ones(2, dtype), 0.1)
    assert (sums.loss, sums.weight, sums.num_correct, sums.num_counted) == (0, 0, 0, 0)
    assert softmax_cross_entropy(none, labels) == sums
    assert sigmoid_cross_entropy(none, none) == squared_error(none, none) == bpr(none) == 0
    for gradient in (
        dlogits,
        sigmoid_cross_entropy_backward(none, none, 1.0),
        squared_error_backward(none, none, 1.0),
        bpr_backward(none, 1.0),
    ):
        assert gradient.shape == (0, 2) and gradient.dtype == dtype


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("labels: expected shape", lambda: softmax_cross_entropy(np.zeros((2, 3)), np.zeros((2, 1), np.int64))),
        ("labels: expected int64, received int32", lambda: softmax_cross_entropy(np.zeros((2, 3)), np.zeros(2, np.int32))),
        (
            "class_weights: expected shape",
            lambda: softmax_cross_entropy_with_gradient(np.zeros((2, 3)), np.zeros(2, np.int64), 1.0, np.ones(2)),
        ),
        (
            "class_weights: expected float32 as the logits, received float64",
            lambda: softmax_cross_entropy(np.zeros((2, 3), np.float32), np.zeros(2, np.int64), np.ones(3)),
        ),
        ("targets: expected shape", lambda: sigmoid_cross_entropy(np.zeros((2, 3)), np.zeros(2))),
        ("pos_weight: expected shape", lambda: sigmoid_cross_entropy(np.zeros((2, 3)), np.zeros((2, 3)), np.ones(2))),
        ("targets: expected shape", lambda: squared_error(np.zeros((2, 3)), np.zeros(2))),
        ("targets: expected shape", lambda: squared_error_backward(np.zeros((2, 3)), np.zeros((2, 1)), 1.0)),
        ("scores: expected shape", lambda: bpr(np.zeros((2, 3)))),
        ("scores: expected shape", lambda: bpr_backward(np.zeros(2), 1.0)),
    ],
)
def test_losses_of_arrays_that_do_not_fit_are_refused(message, call):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
