"""Operations on CuPy arrays against the same operations on NumPy arrays."""

import numpy as np
import pytest
from op_cases import CASES, make_arrays

from lepton_mpi.errors import DataError
from lepton_mpi.ops.adamw_update import adamw_update
from lepton_mpi.ops.array_module import array_module
from lepton_mpi.ops.bf16 import round_to_bf16
from lepton_mpi.ops.bias_relu import bias_relu
from lepton_mpi.ops.dropout import dropout
from lepton_mpi.ops.sgd_update import sgd_update
from lepton_mpi.ops.softmax_cross_entropy import softmax_cross_entropy
from lepton_mpi.ops.sum_of_squares import sum_of_squares

cupy = pytest.importorskip("cupy", reason="needs CuPy")


def has_gpu() -> bool:
    try:
        return bool(cupy.cuda.runtime.getDeviceCount() > 0)
    except cupy.cuda.runtime.CUDARuntimeError:
        return False


pytestmark = pytest.mark.skipif(not has_gpu(), reason="needs a GPU")
SIZES = [0, 1, 255, 257, 3_000_017]


def normal(shape, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("has_momentum", [False, True])
def test_sgd_same_bits_as_cpu(n, has_momentum):
    host = [normal(n, seed) for seed in range(3)]
    device = [cupy.asarray(array) for array in host]
    for arrays in (host, device):
        for _ in range(3):
            buffer = arrays[2] if has_momentum else None
            sgd_update(arrays[0], arrays[1], buffer, lr=0.03, momentum=0.9, weight_decay=0.01, grad_scale=0.37)
    for received, expected in zip(device, host, strict=True):
        np.testing.assert_array_equal(cupy.asnumpy(received), expected)


@pytest.mark.parametrize("n", SIZES)
def test_adamw_same_bits_as_cpu(n):
    host = [normal(n, 1), normal(n, 2), np.zeros(n, np.float32), np.zeros(n, np.float32)]
    device = [cupy.asarray(array) for array in host]
    for arrays in (host, device):
        for step in range(1, 4):
            adamw_update(*arrays, lr=1e-3, weight_decay=0.1, grad_scale=0.37, step=step)
    for received, expected in zip(device, host, strict=True):
        np.testing.assert_array_equal(cupy.asnumpy(received), expected)


@pytest.mark.parametrize("n", SIZES)
def test_sum_of_squares(n):
    x = normal(n, 3)
    assert sum_of_squares(cupy.asarray(x)) == pytest.approx(sum_of_squares(x), rel=1e-12)


@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (7, 5), (256, 1000)])
def test_bias_relu_same_bits_as_cpu(shape):
    y, b = normal(shape, 4), normal(shape[1], 5)
    if y.size > 3:
        y[-1, 2] = np.nan
    received = cupy.asarray(y)
    bias_relu(received, cupy.asarray(b))
    bias_relu(y, b)
    np.testing.assert_array_equal(cupy.asnumpy(received), y)


@pytest.mark.parametrize("name", CASES)
def test_same_as_on_the_host(name):
    function, arrays = CASES[name][0], make_arrays(name)
    expected, received = (function(*(xp.asarray(array) for array in arrays)) for xp in (np, cupy))
    if not isinstance(expected, tuple):
        expected, received = (expected,), (received,)
    for one, other in zip(received, expected, strict=True):
        if not isinstance(other, np.ndarray):
            assert one == pytest.approx(other, rel=1e-5)
            continue
        assert (type(one), one.shape, one.dtype) == (cupy.ndarray, other.shape, other.dtype)
        np.testing.assert_allclose(cupy.asnumpy(one), other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1), (257, 33)])
def test_rounding_to_bf16_has_the_same_bits(shape):
    x = normal(shape, 6)
    x.flat[0] = np.inf
    np.testing.assert_array_equal(cupy.asnumpy(round_to_bf16(cupy.asarray(x))), round_to_bf16(x))


def test_dropout_has_the_same_mask():
    x = normal((33, 257), 7)
    received, expected = (dropout(xp.asarray(x), 0.3, 12345, 7, 11, 300, 3) for xp in (cupy, np))
    np.testing.assert_array_equal(cupy.asnumpy(received[1]), expected[1])
    np.testing.assert_array_equal(cupy.asnumpy(received[0]), expected[0])


def test_a_label_out_of_range_is_named():
    with pytest.raises(DataError, match=r"label \[1, 1\]: .* received 3"):
        softmax_cross_entropy(cupy.zeros((2, 2, 3), np.float32), cupy.asarray([[0, 1], [2, 3]]))


def test_device_arrays_are_told_from_host_arrays():
    assert array_module(cupy.zeros(3)) is cupy
    assert array_module(np.zeros(3)) is np


def test_arrays_that_do_not_fit_a_kernel_are_refused():
    y = cupy.zeros((4, 3), cupy.float32)
    with pytest.raises(ValueError, match="b: expected a CuPy array"):
        bias_relu(y, np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="b: expected contiguous float32"):
        bias_relu(y, cupy.zeros(3))
    with pytest.raises(ValueError, match="y: expected contiguous float32"):
        bias_relu(y.T, cupy.zeros(4, cupy.float32))
    with pytest.raises(ValueError, match="grads: expected a CuPy array"):
        sgd_update(y.reshape(-1), np.zeros(12, np.float32), None, lr=0.1)
