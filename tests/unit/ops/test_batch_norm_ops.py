"""Batch normalisation in pieces: moments and their merging, native against NumPy, against PyTorch, refusals."""

import numpy as np
import pytest

from lepton_mpi.ops.batch_norm import (
    batch_norm,
    batch_norm_backward_input,
    batch_norm_backward_input_reference,
    batch_norm_reference,
    batch_norm_sums,
    batch_norm_sums_reference,
    channel_moments,
    channel_moments_reference,
    merge_moments,
)

SHAPES = [(5, 3, 7, 16), (7, 3), (1, 5), (2, 2, 1), (11, 33)]


def draw(shape, dtype=np.float32, seed=0, mean=3.0):
    return (np.random.default_rng(seed).standard_normal(shape) * 2 + mean).astype(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_native_moments_are_the_reference_ones(shape, mean):
    x = draw(shape, mean=mean)
    received, expected = channel_moments(x), channel_moments_reference(x.astype(np.float64))
    assert received.count == expected.count == x.size // shape[-1]
    np.testing.assert_allclose(received.mean, expected.mean, rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(received.squares, expected.squares, rtol=1e-12, atol=1e-12)


def test_a_constant_channel_has_no_spread_and_nan_is_seen():
    x = np.full((13, 2), 0.1, np.float32)
    assert channel_moments(x).squares.tolist() == [0, 0]
    x[5, 1] = np.nan
    moments = channel_moments(x)
    assert np.isnan(moments.mean[1]) and np.isnan(moments.squares[1]) and moments.squares[0] == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("cuts", [[4], [0, 4], [2, 2, 5], [3, 9, 9]])
def test_merged_parts_are_the_whole(cuts, dtype):
    x = draw((9, 5, 3), dtype, mean=100.0)
    parts = [channel_moments(part) for part in np.split(x, cuts)]
    merged = merge_moments(*(np.array([getattr(part, name) for part in parts]) for name in ("count", "mean", "squares")))
    whole = channel_moments_reference(x.astype(np.float64))
    assert merged.count == whole.count
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-13)
    np.testing.assert_allclose(merged.squares, whole.squares, rtol=1e-10)


def test_no_rows_anywhere():
    empty = channel_moments(np.zeros((0, 4, 3), np.float32))
    merged = merge_moments(np.zeros(2), np.array([empty.mean] * 2), np.array([empty.squares] * 2))
    assert (merged.count, merged.mean.tolist(), merged.squares.tolist()) == (0, [0] * 3, [0] * 3)
    assert np.isfinite(merged.deviation_inverse(1e-5)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [*SHAPES, (0, 3, 5)])
def test_values_and_gradients_against_pytorch(shape, dtype):
    x, dy = draw(shape, dtype), draw(shape, dtype, 1, 0.0)
    weight, bias = draw(shape[-1:], dtype, 2), draw(shape[-1:], dtype, 3)
    moments = channel_moments(x)
    inverse = moments.deviation_inverse(1e-5)
    y = batch_norm(x, moments.mean, inverse, weight, bias)
    sum_dy, sum_dy_xhat = batch_norm_sums(dy, x, moments.mean, inverse)
    dx = batch_norm_backward_input(dy, x, moments.mean, inverse, weight, sum_dy, sum_dy_xhat, moments.count)
    assert (y.dtype, dx.dtype, y.shape, dx.shape) == (dtype, dtype, shape, shape)
    assert sum_dy.dtype == sum_dy_xhat.dtype == np.float64
    if moments.count < 2:
        return  # PyTorch refuses those
    torch = pytest.importorskip("torch")
    tensors = [torch.tensor(a.astype(np.float64), requires_grad=True) for a in (x.reshape(-1, shape[-1]), weight, bias)]
    expected = torch.nn.functional.batch_norm(tensors[0], None, None, *tensors[1:], training=True)
    expected.backward(torch.tensor(dy.reshape(-1, shape[-1]).astype(np.float64)))
    tolerance = 1e-5 if dtype == np.float32 else 1e-9
    wanted = [expected.detach(), *(tensor.grad for tensor in tensors)]
    for received, tensor in zip((y.reshape(-1, shape[-1]), dx.reshape(-1, shape[-1]), sum_dy_xhat, sum_dy), wanted, strict=True):
        np.testing.assert_allclose(received, tensor.numpy(), rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("shape", SHAPES)
def test_native_paths_are_the_reference_ones(shape):
    x, dy = draw(shape), draw(shape, seed=1)
    mean, inverse = draw(shape[-1:], np.float64, 2), np.abs(draw(shape[-1:], np.float64, 3))
    weight, bias = draw(shape[-1:], seed=4), draw(shape[-1:], seed=5)
    mean32, scale = mean.astype(np.float32), (weight * inverse).astype(np.float32)
    np.testing.assert_array_equal(batch_norm(x, mean, inverse, weight, bias), batch_norm_reference(x, mean32, scale, bias))
    sums = batch_norm_sums(dy, x, mean, inverse)
    for received, expected in zip(sums, batch_norm_sums_reference(dy, x, mean, inverse), strict=True):
        np.testing.assert_allclose(received, expected, rtol=1e-12, atol=1e-12)
    dx = batch_norm_backward_input(dy, x, mean, inverse, weight, *sums, 7)
    factor = -weight * inverse / 7
    slope, shift = ((factor * part).astype(np.float32) for part in (inverse * sums[1], sums[0]))
    np.testing.assert_array_equal(dx, batch_norm_backward_input_reference(dy, x, mean32, scale, slope, shift))


X, C3, C2 = np.zeros((4, 3), np.float32), np.ones(3), np.ones(2)
REFUSED = {
    "means": lambda: merge_moments(np.ones(2), np.zeros((3, 2)), np.zeros((3, 2))),
    "squares": lambda: merge_moments(np.ones(2), np.zeros((2, 2)), np.zeros((2, 3))),
    "weight": lambda: batch_norm(X, C3, np.ones(1), np.ones(1), C3),
    "mean": lambda: batch_norm_sums(X, X, C2, C2),
    "dy of sums": lambda: batch_norm_sums(X[:2], X, C3, C3),
    "dy": lambda: batch_norm_backward_input(X[:2], X, C3, C3, C3, C3, C3, 4),
    "sums": lambda: batch_norm_backward_input(X, X, C2, C3, C3, C3, C3, 4),
}


@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_wrong_shapes_are_refused(call):
    with pytest.raises(ValueError, match="expected shape"):
        call()
