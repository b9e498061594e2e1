"""Cross entropy of divided classes: that of whole rows, on any number of shards, to the bit with one number of chunks."""

from dataclasses import replace

import numpy as np
import pytest
from threads_as_ranks import run_threads

from lepton_mpi.errors import DataError
from lepton_mpi.nn.divided_loss import DividedSoftmaxCrossEntropy
from lepton_mpi.nn.linear import Linear
from lepton_mpi.nn.losses import SoftmaxCrossEntropy
from lepton_mpi.nn.module import Context
from lepton_mpi.nn.parameter import Parameter, cut_parameter
from lepton_mpi.nn.place import Alone

CASES = [(7, False, 0.0), (7, True, 0.0), (11, False, 0.2), (11, True, 0.1), (4, True, 0.3)]
INFINITE, NAN = -np.inf, np.nan


def draw(num_classes: int, dtype=np.float64, weighted: bool = False):
    random = np.random.default_rng(num_classes)
    output = (random.standard_normal((3, 5, num_classes)) * 4).astype(dtype)
    target = random.integers(0, num_classes, (3, 5))
    target[0, 1:3] = -100
    weights = (*random.uniform(0.5, 2, num_classes - 1).tolist(), 0.0) if weighted else ()
    return output, target, weights


def divided(place, whole: SoftmaxCrossEntropy, output, target, chunks: int = 0):
    place = replace(place, chunks=chunks)
    num_classes = output.shape[-1]
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        part = np.ascontiguousarray(output[..., slice(*place.share(num_classes))])
        return DividedSoftmaxCrossEntropy(whole, num_classes, place)(part, target, 0.3)


def on_shards(shards: int, *what, **how):
    if shards == 1:
        return [divided(Alone(), *what, **how)]
    return run_threads(lambda place: divided(place, *what, **how), shards=shards)


def numbers(result):
    return result.loss, result.weight, result.num_correct, result.num_counted


@pytest.mark.parametrize(("num_classes", "weighted", "smoothing"), CASES)
@pytest.mark.parametrize(("shards", "chunks"), [(1, 4), (2, 0), (3, 0), (4, 0), (3, 4)])
def test_it_is_that_of_the_whole(num_classes, weighted, smoothing, shards, chunks):
    output, target, weights = draw(num_classes, weighted=weighted)
    whole = SoftmaxCrossEntropy(weights, smoothing)
    expected, found = whole(output, target, 0.3), on_shards(shards, whole, output, target, chunks=chunks)
    gradient = np.concatenate([result.gradient for result in found], axis=-1)
    np.testing.assert_allclose(gradient, expected.gradient, rtol=1e-12, atol=1e-15)
    assert {numbers(result) for result in found} == {numbers(found[0])}
    assert numbers(found[0]) == pytest.approx(numbers(expected), rel=1e-13)


@pytest.mark.parametrize(("num_classes", "weighted", "smoothing"), CASES)
def test_shards_with_the_same_chunks_find_the_same_bits(num_classes, weighted, smoothing):
    output, target, weights = draw(num_classes, np.float32, weighted)
    whole = SoftmaxCrossEntropy(weights, smoothing)
    texts = set()
    for shards in (1, 2, 3, 4):
        found = on_shards(shards, whole, output, target, chunks=4)
        assert all(result.gradient.dtype == np.float32 for result in found)
        texts.add((numbers(found[0]), np.concatenate([result.gradient for result in found], axis=-1).tobytes()))
    assert len(texts) == 1
    near = whole(output, target, 0.3)
    np.testing.assert_allclose(np.frombuffer(texts.pop()[1], np.float32), near.gradient.ravel(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize(
    "row",
    [
        [1.0, NAN, 0.0, 2.0, 1.0],
        [INFINITE, INFINITE, 0.0, 2.0, 1.0],  # a chunk without any probability
        [INFINITE] * 5,
        [1.0, 0.0, 0.0, np.inf, 1.0],
        [3.0, 1.0, 3.0, 3.0, 1.0],  # the first of equals is the guess
        [1e4, -1e4, 0.0, 1.0, 2.0],
    ],
)
def test_rows_out_of_the_ordinary(row, smoothing):
    output, whole = np.array([row] * 6), SoftmaxCrossEntropy((), smoothing)
    for target in (np.arange(5), np.array([-100])):
        rows = output[: len(target)]
        with np.errstate(invalid="ignore", divide="ignore"):
            expected = [whole(rows[i : i + 1], target[i : i + 1], 0.3) for i in range(len(target))]
        for shards in (2, 3):
            for i, one in enumerate(expected):
                found = on_shards(shards, whole, rows[i : i + 1], target[i : i + 1])
                np.testing.assert_allclose(numbers(found[0]), numbers(one), rtol=1e-12)
                gradient = np.concatenate([result.gradient for result in found], axis=-1)
                np.testing.assert_allclose(gradient, one.gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("shards", [1, 2])
def test_no_samples(shards):
    output, target = np.zeros((0, 5, 7), np.float32), np.zeros((0, 5), np.int64)
    for result in on_shards(shards, SoftmaxCrossEntropy((), 0.1), output, target):
        assert numbers(result) == (0, 0, 0, 0)
        assert result.gradient.shape[:2] == (0, 5) and result.gradient.dtype == np.float32


def test_refusals():
    loss = DividedSoftmaxCrossEntropy(SoftmaxCrossEntropy(), 7, Alone())
    with pytest.raises(DataError, match=r"label \[1\].*\[0, 7\).*received 7"):
        loss(np.zeros((2, 7)), np.array([0, 7]), 1.0)
    with pytest.raises(ValueError, match="logits"):
        loss(np.zeros((2, 6)), np.array([0, 1]), 1.0)
    with pytest.raises(ValueError, match="class_weights"):
        DividedSoftmaxCrossEntropy(SoftmaxCrossEntropy((1.0, 2.0)), 7, Alone())(np.zeros((2, 7)), np.array([0, 1]), 1.0)


def output_layer(place, divided_output: bool):
    """Return the output of a layer that feeds the loss, and the gradients that a loss makes there."""
    random = np.random.default_rng(5)
    values, x = random.standard_normal((7, 6)), random.standard_normal((2, 3, 6))
    layer = Linear("head", 6, 7, split="column", gather=True, feeds_loss=True, bias=False)
    block = cut_parameter(layer.weight_spec, place.shards, place.shard, 0)
    value = values[block.starts[0] : block.starts[0] + block.shape[0]]
    weight = Parameter(block, value, np.zeros_like(value))
    module, whole = layer.build({"head.weight": weight}, place), SoftmaxCrossEntropy()
    y, saved = module.forward(x, Context(training=True, divided_output=divided_output))
    loss = DividedSoftmaxCrossEntropy(whole, 7, place) if divided_output else whole
    dx, pending = module.backward_input(loss(y, np.array([[0, 6, 3], [-100, 1, 2]]), 1.0).gradient, saved)
    module.backward_weight(pending)
    assert layer.can_divide_output
    return y, dx, weight.grad


@pytest.mark.parametrize("shards", [2, 3])
def test_an_output_layer_that_stays_divided_gets_the_same_gradients(shards):
    y, dx, dw = output_layer(Alone(), False)
    found = run_threads(lambda place: output_layer(place, True), shards=shards)
    np.testing.assert_allclose(np.concatenate([part[0] for part in found], axis=-1), y, rtol=1e-13)
    np.testing.assert_allclose(np.concatenate([part[2] for part in found]), dw, rtol=1e-10, atol=1e-13)
    for part in found:
        assert part[0].shape[-1] < 7
        np.testing.assert_allclose(part[1], dx, rtol=1e-10, atol=1e-13)
    gathered = run_threads(lambda place: output_layer(place, False), shards=shards)
    assert all(part[0].shape == y.shape for part in gathered)
