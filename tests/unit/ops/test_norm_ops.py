"""Layer norm and RMS norm: central differences in float64, C++ against NumPy and PyTorch, the order of sums."""

import numpy as np
import pytest

from lepton_mpi.ops.layer_norm import layer_norm, layer_norm_backward, layer_norm_backward_reference, layer_norm_reference
from lepton_mpi.ops.rms_norm import rms_norm, rms_norm_backward, rms_norm_backward_reference, rms_norm_reference

STEP = 1e-6
SHAPES = [(1, 2), (3, 5), (2, 3, 7), (5, 17), (130, 33)]


def arrays(shape, dtype=np.float64):
    rng = np.random.default_rng(sum(shape))
    x, dy, weight, bias = (rng.standard_normal(size).astype(dtype) for size in (shape, shape, shape[-1:], shape[-1:]))
    return x + dtype(3), dy, weight, bias


def numeric_gradient(loss, x):
    gradient = np.empty_like(x)
    for index in np.ndindex(*x.shape):
        kept = x[index]
        ends = []
        for x[index] in (kept + STEP, kept - STEP):
            ends.append(loss())
        x[index] = kept
        gradient[index] = (ends[0] - ends[1]) / (2 * STEP)
    return gradient


@pytest.mark.parametrize("shape", SHAPES[:4])
@pytest.mark.parametrize("has_bias", [True, False])
def test_layer_norm_gradients(shape, has_bias):
    x, dy, weight, bias = arrays(shape)
    y, mean, rstd = layer_norm(x, weight, bias if has_bias else None, 1e-5)
    dx, dweight, dbias = layer_norm_backward(dy, x, weight, mean, rstd)

    def loss():
        return float((layer_norm(x, weight, bias if has_bias else None, 1e-5)[0] * dy).sum())

    assert y.shape == shape
    np.testing.assert_allclose(dx, numeric_gradient(loss, x), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(dweight, numeric_gradient(loss, weight), rtol=1e-6, atol=1e-7)
    if has_bias:
        np.testing.assert_allclose(dbias, numeric_gradient(loss, bias), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", SHAPES[:4])
def test_rms_norm_gradients(shape):
    x, dy, weight, _ = arrays(shape)
    _, rstd = rms_norm(x, weight, 1e-6)
    dx, dweight = rms_norm_backward(dy, x, weight, rstd)

    def loss():
        return float((rms_norm(x, weight, 1e-6)[0] * dy).sum())

    np.testing.assert_allclose(dx, numeric_gradient(loss, x), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(dweight, numeric_gradient(loss, weight), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [*SHAPES, (0, 4), (2, 0, 4), (3, 5, 16), (64, 48)])
@pytest.mark.parametrize("want_dx", [True, False])
def test_native_paths_against_float64(shape, want_dx):
    x, dy, weight, bias = arrays(shape, np.float32)
    exact = [array.astype(np.float64) for array in (x, dy, weight, bias)]
    y, mean, rstd = layer_norm(x, weight, bias, 1e-5)
    exact_y, exact_mean, exact_rstd = layer_norm_reference(exact[0], exact[2], exact[3], 1e-5)
    pairs = [(y, exact_y), (mean, exact_mean), (rstd, exact_rstd)]
    found = layer_norm_backward(dy, x, weight, mean, rstd, want_dx)
    expected = layer_norm_backward_reference(exact[1], exact[0], exact[2], exact_mean, exact_rstd, want_dx)
    pairs += zip(found, expected, strict=True)
    y, rstd = rms_norm(x, weight, 1e-6)
    exact_y, exact_rstd = rms_norm_reference(exact[0], exact[2], 1e-6)
    found = rms_norm_backward(dy, x, weight, rstd, want_dx)
    expected = rms_norm_backward_reference(exact[1], exact[0], exact[2], exact_rstd, want_dx)
    pairs += [(y, exact_y), (rstd, exact_rstd), *zip(found, expected, strict=True)]
    for one, other in pairs:
        if other is None:
            assert one is None
            continue
        assert (one.dtype, one.shape) == (np.float32, other.shape)
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_a_large_mean_does_not_drown_the_variance():
    x = (1000 + np.random.default_rng(0).standard_normal((4, 96))).astype(np.float32)
    ones = np.ones(96, np.float32)
    exact = layer_norm_reference(x.astype(np.float64), ones, None, 1e-5)[0]
    np.testing.assert_allclose(layer_norm(x, ones, None, 1e-5)[0], exact, atol=1e-3)


def test_a_row_is_summed_in_16_lanes():
    x = np.random.default_rng(1).standard_normal((1, 83)).astype(np.float32)
    lanes = np.zeros(16, np.float32)
    for i, value in enumerate(x[0]):
        lanes[i % 16] += value
    while lanes.size > 1:
        lanes = lanes[: lanes.size // 2] + lanes[lanes.size // 2 :]
    _, mean, _ = layer_norm(x, np.ones(83, np.float32), None, 1e-5)
    assert mean[0] == lanes[0] / np.float32(83)


def test_strided_arrays():
    x, dy, weight, bias = arrays((6, 10), np.float32)
    _, mean, rstd = layer_norm(x[::2], weight, bias, 1e-5)
    found = layer_norm_backward(dy[::2], x[::2], weight, mean, rstd)
    expected = layer_norm_backward(dy[::2].copy(), x[::2].copy(), weight, mean, rstd)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 64)])
def test_against_torch(shape):
    torch = pytest.importorskip("torch")
    x, dy, weight, bias = arrays(shape, np.float32)
    there = [torch.tensor(array, requires_grad=True) for array in (x, weight, bias)]
    theirs = torch.nn.functional.layer_norm(there[0], shape[-1:], there[1], there[2], 1e-5)
    theirs.backward(torch.tensor(dy))
    y, mean, rstd = layer_norm(x, weight, bias, 1e-5)
    np.testing.assert_allclose(y, theirs.detach(), rtol=1e-5, atol=1e-5)
    for found, tensor in zip(layer_norm_backward(dy, x, weight, mean, rstd), there, strict=True):
        np.testing.assert_allclose(found, tensor.grad, rtol=1e-4, atol=1e-5)
    there = [torch.tensor(array, requires_grad=True) for array in (x, weight)]
    theirs = torch.nn.functional.rms_norm(there[0], shape[-1:], there[1], 1e-6)
    theirs.backward(torch.tensor(dy))
    y, rstd = rms_norm(x, weight, 1e-6)
    np.testing.assert_allclose(y, theirs.detach(), rtol=1e-5, atol=1e-5)
    for found, tensor in zip(rms_norm_backward(dy, x, weight, rstd), there, strict=True):
        np.testing.assert_allclose(found, tensor.grad, rtol=1e-4, atol=1e-5)


def test_other_shapes_are_refused():
    x, dy, weight, bias = arrays((3, 5), np.float32)
    _, mean, rstd = layer_norm(x, weight, bias, 1e-5)
    for call in (
        lambda: layer_norm(x[:, :4], weight, bias, 1e-5),
        lambda: layer_norm(x, weight, bias[:4], 1e-5),
        lambda: layer_norm_backward(dy[:2], x, weight, mean, rstd),
        lambda: layer_norm_backward(dy, x, weight, mean[:2], rstd),
        lambda: rms_norm(x, weight[:, None], 1e-6),
        lambda: rms_norm_backward(dy[:2], x, weight, rstd),
        lambda: rms_norm_backward(dy, x, weight, rstd[:2]),
    ):
        with pytest.raises(ValueError, match="expected"):
            call()
