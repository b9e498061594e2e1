"""Pooling and enlargement: against PyTorch, native against NumPy, NaN and infinities, empty batches, refusals."""

import numpy as np
import pytest

from lepton_mpi.ops.pooling import (
    avg_pool2d,
    avg_pool2d_backward,
    global_avg_pool,
    global_avg_pool_backward,
    max_pool2d,
    max_pool2d_backward,
    max_pool2d_reference,
)
from lepton_mpi.ops.upsample import upsample_nearest, upsample_nearest_backward

# (shape, kernel, stride, padding)
CASES = [
    ((2, 6, 8, 3), (2, 2), (2, 2), (0, 0)),
    ((2, 7, 5, 1), (3, 3), (2, 2), (1, 1)),
    ((3, 5, 7, 17), (3, 2), (1, 2), (1, 0)),
    ((1, 4, 4, 2), (1, 1), (3, 3), (0, 0)),
    ((1, 1, 1, 5), (2, 2), (1, 1), (1, 1)),
    ((0, 6, 6, 2), (2, 2), (2, 2), (0, 0)),
]
DTYPES = [np.float32, np.float64]


def draw(shape, dtype, seed=0):
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(dtype)  # with many equal pixels


def torch_pool(function, x, dy, *arguments):
    """Return output and input gradient of a PyTorch function, channels last."""
    torch = pytest.importorskip("torch")
    images = torch.tensor(np.ascontiguousarray(x.transpose(0, 3, 1, 2)), requires_grad=True)
    y = getattr(torch.nn.functional, function)(images, *arguments)
    y.backward(torch.tensor(np.ascontiguousarray(dy.transpose(0, 3, 1, 2))))
    return y.detach().numpy().transpose(0, 2, 3, 1), images.grad.numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "kernel", "stride", "padding"), CASES)
def test_max_pooling_is_that_of_pytorch(shape, kernel, stride, padding, dtype):
    x, options = draw(shape, dtype), {"kernel": kernel, "stride": stride, "padding": padding}
    y, places = max_pool2d(x, **options)
    reference = max_pool2d_reference(x, **options)
    np.testing.assert_array_equal(y, reference[0])
    np.testing.assert_array_equal(places, reference[1])
    dy = draw(y.shape, dtype, 1)
    dx = max_pool2d_backward(dy, places, shape, **options)
    assert (y.dtype, places.dtype, dx.dtype) == (dtype, np.int32, dtype)
    expected, expected_dx = torch_pool("max_pool2d", x, dy, kernel, stride, padding)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(dx, expected_dx)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_in_max_pooling(dtype):
    x = np.full((1, 4, 4, 2), -np.inf, dtype)
    x[0, 1, 1, 0] = np.nan
    x[0, 1, 0, 0] = np.inf
    for pool in (max_pool2d, max_pool2d_reference):
        y, places = pool(x, kernel=(2, 2), stride=(2, 2))
        assert np.isnan(y[0, 0, 0, 0]) and np.isneginf(y.reshape(-1)[1:]).all()
        assert places[..., 0].ravel().tolist() == [5, 2, 8, 10]
        # Padding never wins, not even over minus infinity.
        assert pool(x[..., 1:], kernel=(2, 2), stride=(2, 2), padding=(1, 1))[1].ravel().tolist() == [0, 1, 3, 4, 5, 7, 12, 13, 15]


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-14)])
@pytest.mark.parametrize(("shape", "kernel", "stride", "padding"), CASES)
def test_mean_pooling_is_that_of_pytorch(shape, kernel, stride, padding, dtype, tolerance):
    x, options = draw(shape, dtype), {"kernel": kernel, "stride": stride, "padding": padding}
    y = avg_pool2d(x, **options)
    dy = draw(y.shape, dtype, 1)
    dx = avg_pool2d_backward(dy, shape, **options)
    assert (y.dtype, dx.dtype) == (dtype, dtype)
    expected, expected_dx = torch_pool("avg_pool2d", x, dy, kernel, stride, padding)
    np.testing.assert_allclose(y, expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(dx, expected_dx, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 1, 1, 1), (0, 3, 2, 4)])
def test_global_mean(shape, dtype):
    x, dy = draw(shape, dtype), draw((shape[0], shape[3]), dtype, 1)
    y, dx = global_avg_pool(x), global_avg_pool_backward(dy, shape)
    assert (y.dtype, dx.dtype, dx.shape) == (dtype, dtype, shape)
    np.testing.assert_allclose(y, x.sum(axis=2).sum(axis=1) / (shape[1] * shape[2]), rtol=1e-6, atol=1e-6)
    assert float((y * dy).sum()) == pytest.approx(float((x * dx).sum()), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "factor"), [((2, 3, 5, 7), 2), ((1, 1, 1, 1), 3), ((2, 3, 2, 4), 1), ((0, 3, 2, 4), 2)])
def test_enlargement_repeats_pixels(shape, factor, dtype):
    x = draw(shape, dtype)
    y = upsample_nearest(x, factor)
    np.testing.assert_array_equal(y, x.repeat(factor, axis=1).repeat(factor, axis=2))
    dy = draw(y.shape, dtype, 1)
    dx = upsample_nearest_backward(dy, factor)
    assert (dx.shape, dx.dtype, y.dtype) == (shape, dtype, dtype)
    assert float((y * dy).sum()) == float((x * dx).sum())


X, OPTIONS = np.zeros((1, 4, 4, 1), np.float32), {"kernel": (2, 2), "stride": (2, 2)}
PLACES = np.zeros((1, 2, 2, 1), np.int32)
REFUSED = {
    "dims, largest": (lambda: max_pool2d(X[0], **OPTIONS), "x: expected shape"),
    "dims, mean": (lambda: avg_pool2d(X[0], **OPTIONS), "x: expected shape"),
    "dims, global": (lambda: global_avg_pool(X[0]), "x: expected shape"),
    "padding": (lambda: max_pool2d(X, **OPTIONS, padding=(2, 0)), "at most half of the kernel"),
    "small image": (lambda: avg_pool2d(X, kernel=(5, 5), stride=(1, 1)), "smaller than a window"),
    "places": (lambda: max_pool2d_backward(X, PLACES, X.shape, **OPTIONS), "dy: expected shape"),
    "dy, largest": (lambda: max_pool2d_backward(X, X.astype(np.int32), X.shape, **OPTIONS), "dy: expected shape"),
    "dy, mean": (lambda: avg_pool2d_backward(X, X.shape, **OPTIONS), "dy: expected shape"),
    "dy, global": (lambda: global_avg_pool_backward(X, X.shape), "dy: expected shape"),
    "dims, enlarged": (lambda: upsample_nearest(X[0], 2), "x: expected shape"),
    "dims of dy, enlarged": (lambda: upsample_nearest_backward(X[0], 2), "dy: expected shape"),
    "factor": (lambda: upsample_nearest(X, 0), "factor: expected a positive integer"),
    "no multiple": (lambda: upsample_nearest_backward(X, 3), "multiples of 3, received 4 x 4"),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_wrong_shapes_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
