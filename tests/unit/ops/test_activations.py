"""GELU, SiLU and SwiGLU: slopes against central differences, C++ against NumPy in float64 and against PyTorch."""

import numpy as np
import pytest

from lepton_mpi.ops.gelu import gelu, gelu_backward, gelu_reference, gelu_with_slope
from lepton_mpi.ops.silu import silu, silu_backward, silu_reference, silu_with_slope
from lepton_mpi.ops.swiglu import swiglu, swiglu_backward, swiglu_backward_reference, swiglu_reference

STEP = 1e-6
# name: (value, value and slope, reference)
ACTIVATIONS = {
    "gelu": (gelu, gelu_with_slope, gelu_reference),
    "gelu_tanh": (lambda x: gelu(x, True), lambda x: gelu_with_slope(x, True), lambda x: gelu_reference(x, True)),
    "silu": (silu, silu_with_slope, silu_reference),
}
all_activations = pytest.mark.parametrize("name", ACTIVATIONS)


@all_activations
def test_slope_against_central_differences(name):
    value, with_slope, _ = ACTIVATIONS[name]
    x = np.linspace(-6, 6, 101).reshape(101, 1)
    y, slope = with_slope(x)
    np.testing.assert_array_equal(y, value(x))
    np.testing.assert_allclose(slope, (value(x + STEP) - value(x - STEP)) / (2 * STEP), rtol=1e-7, atol=1e-9)


@all_activations
def test_native_path_against_float64(name):
    value, with_slope, reference = ACTIVATIONS[name]
    x = np.concatenate([np.linspace(-30, 30, 100003), np.geomspace(1e-30, 1e4, 997), -np.geomspace(1e-30, 1e4, 997)])
    x = x.astype(np.float32)
    y, slope = with_slope(x)
    assert y.dtype == slope.dtype == np.float32
    np.testing.assert_array_equal(y, value(x))
    exact_y, exact_slope = reference(x.astype(np.float64))
    np.testing.assert_allclose(y, exact_y, rtol=4e-7, atol=3e-7)
    np.testing.assert_allclose(slope, exact_slope, rtol=4e-7, atol=1e-6)


@all_activations
@pytest.mark.parametrize("shape", [(1,), (3, 5), (7, 1, 17), (0, 4)])
def test_shapes(name, shape):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    y, slope = ACTIVATIONS[name][1](x)
    exact_y, exact_slope = ACTIVATIONS[name][2](x)
    np.testing.assert_allclose(y, exact_y, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slope, exact_slope, rtol=1e-5, atol=1e-6)
    assert y.shape == shape


@all_activations
def test_strided_input_and_nan(name):
    value, with_slope, _ = ACTIVATIONS[name]
    x = np.random.default_rng(1).standard_normal((6, 10)).astype(np.float32)
    np.testing.assert_array_equal(value(x[::2, ::3]), value(x[::2, ::3].copy()))
    x[1, 1] = np.nan
    for found in (value(x), *with_slope(x)):
        np.testing.assert_array_equal(np.isnan(found), np.isnan(x))


@pytest.mark.parametrize("backward", [gelu_backward, silu_backward])
def test_backward_is_a_product(backward):
    dy, slope = np.random.default_rng(2).standard_normal((2, 3, 5))
    np.testing.assert_array_equal(backward(dy, slope), dy * slope)
    with pytest.raises(ValueError, match=r"dy: expected shape \(3, 5\), received \(3, 4\)"):
        backward(dy[:, :4], slope)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_against_torch(name):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(3).normal(0, 3, (13, 17)).astype(np.float32)
    there = torch.tensor(x, requires_grad=True)
    theirs = {
        "gelu": torch.nn.functional.gelu,
        "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        "silu": torch.nn.functional.silu,
    }[name](there)
    theirs.sum().backward()
    y, slope = ACTIVATIONS[name][1](x)
    np.testing.assert_allclose(y, theirs.detach(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slope, there.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 7, 11)])
def test_swiglu_gradients(shape):
    gate, up, dy = np.random.default_rng(4).standard_normal((3, *shape))
    dgate, dup, y = swiglu_backward(dy, gate, up)
    np.testing.assert_array_equal(y, swiglu(gate, up))
    np.testing.assert_allclose(dgate, dy * (swiglu(gate + STEP, up) - swiglu(gate - STEP, up)) / (2 * STEP), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(dup, dy * (swiglu(gate, up + STEP) - swiglu(gate, up - STEP)) / (2 * STEP), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("shape", [(0, 3), (1,), (37, 41)])
def test_swiglu_native_path_against_float64(shape):
    gate, up, dy = np.random.default_rng(5).normal(0, 4, (3, *shape)).astype(np.float32)
    exact = [array.astype(np.float64) for array in (dy, gate, up)]
    np.testing.assert_allclose(swiglu(gate, up), swiglu_reference(*exact[1:]), rtol=1e-6, atol=1e-6)
    for found, expected in zip(swiglu_backward(dy, gate, up), swiglu_backward_reference(*exact), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)


def test_swiglu_refuses_other_shapes():
    x = np.zeros((3, 5), np.float32)
    with pytest.raises(ValueError, match="up: expected shape"):
        swiglu(x, x[:2])
    with pytest.raises(ValueError, match="up: expected shape"):
        swiglu_backward(x, x, x[:2])
    with pytest.raises(ValueError, match="dy: expected shape"):
        swiglu_backward(x[:2], x, x)
