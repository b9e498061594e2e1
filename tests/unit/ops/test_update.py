"""Optimizer updates and the sum of squares: bit equality with the NumPy reference, conventions, refusals."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lepton_mpi import native
from lepton_mpi.ops.adamw_update import adamw_scalars, adamw_update, adamw_update_reference
from lepton_mpi.ops.lamb_update import lamb_direction, lamb_direction_reference
from lepton_mpi.ops.onebit_adam_update import (
    frozen_adam_update,
    frozen_adam_update_reference,
    momentum_share,
    momentum_share_reference,
)
from lepton_mpi.ops.sgd_update import sgd_update, sgd_update_reference
from lepton_mpi.ops.sum_of_squares import sum_of_squares, sum_of_squares_reference

SIZES = [0, 1, 7, 15, 16, 17, 63, 1000, 4099]
SGD = {"lr": 0.03, "momentum": 0.9, "weight_decay": 0.01, "grad_scale": 0.37}
ADAMW = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.1, "grad_scale": 0.37}
LAMB = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-6, "weight_decay": 0.1, "grad_scale": 0.37}


def normal(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)


def with_specials(x: np.ndarray, seed: int) -> np.ndarray:
    specials = np.array([0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 1e-38, 3e38], np.float32)
    rng = np.random.default_rng(seed)
    x[rng.integers(0, x.size, x.size // 4)] = rng.choice(specials, x.size // 4)
    return x


def assert_same_bits(received: np.ndarray, expected: np.ndarray) -> None:
    """Bit equality; NaNs are one value, since their payloads depend on the order of operands."""
    np.testing.assert_array_equal(np.isnan(received), np.isnan(expected))
    bits, expected_bits = received.view(np.uint32), expected.view(np.uint32)
    np.testing.assert_array_equal(bits[~np.isnan(received)], expected_bits[~np.isnan(expected)])


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("has_momentum", [False, True])
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_sgd_same_bits_as_reference(n, has_momentum, special):
    values, momentum_buffer = normal(n, 1), normal(n, 2) if has_momentum else None
    expected, expected_buffer = values.copy(), None if momentum_buffer is None else momentum_buffer.copy()
    for step in range(3):
        grads = normal(n, 10 + step)
        if special and n > 0:
            grads = with_specials(grads, step)
        sgd_update(values, grads, momentum_buffer, **SGD)
        sgd_update_reference(expected, grads, expected_buffer, **SGD)
        assert_same_bits(values, expected)
        if momentum_buffer is not None and expected_buffer is not None:
            assert_same_bits(momentum_buffer, expected_buffer)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_adamw_same_bits_as_reference(n, special):
    values, m, v = normal(n, 1), np.zeros(n, np.float32), np.zeros(n, np.float32)
    expected, expected_m, expected_v = values.copy(), m.copy(), v.copy()
    for step in (1, 2, 3, 1000, 10**9):
        grads = normal(n, step)
        if special and n > 0:
            grads = with_specials(grads, step)
        adamw_update(values, grads, m, v, step=step, **ADAMW)
        adamw_update_reference(expected, grads, expected_m, expected_v, adamw_scalars(step=step, **ADAMW))
        assert_same_bits(values, expected)
        assert_same_bits(m, expected_m)
        assert_same_bits(v, expected_v)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_lamb_same_bits_as_reference(n, special):
    values, m, v = normal(n, 1), np.zeros(n, np.float32), np.zeros(n, np.float32)
    expected_m, expected_v = m.copy(), v.copy()
    for step in (1, 2, 1000):
        grads = normal(n, step)
        if special and n > 0:
            grads = with_specials(grads, step)
        expected = grads.copy()
        lamb_direction(values, grads, m, v, step=step, **LAMB)
        lamb_direction_reference(values, expected, expected_m, expected_v, step=step, **LAMB)
        for received, wanted in ((grads, expected), (m, expected_m), (v, expected_v)):
            assert_same_bits(received, wanted)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_frozen_adam_same_bits_as_reference(n, special):
    values, m, v = normal(n, 1), normal(n, 2), np.square(normal(n, 3))
    v[::3] = 0
    expected, expected_m = values.copy(), m.copy()
    for step in (8, 9, 1000):
        grads = normal(n, step)
        if special and n > 0:
            grads = with_specials(grads, step)
        shares = grads.copy()
        momentum_share(grads, m, beta1=0.9, num_ranks=3)
        momentum_share_reference(shares, expected_m, 0.9, 3)
        assert_same_bits(grads, shares)
        frozen_adam_update(values, grads, m, v, step=step, frozen_step=7, **ADAMW)
        frozen_adam_update_reference(expected, shares, expected_m, v, step=step, frozen_step=7, **ADAMW)
        assert_same_bits(values, expected)
        assert_same_bits(m, expected_m)


def test_sgd_follows_its_formula_in_double_precision():
    values, grads, momentum_buffer = normal(100, 1), normal(100, 2), np.zeros(100, np.float32)
    value, m = values.astype(np.float64), np.zeros(100)
    for _ in range(5):
        m = 0.9 * m + (0.37 * grads.astype(np.float64) + 0.01 * value)
        value = value - 0.03 * m
        sgd_update(values, grads, momentum_buffer, **SGD)
    np.testing.assert_allclose(values, value, rtol=1e-5, atol=1e-6)


def test_adamw_follows_its_paper_in_double_precision():
    values, m, v = normal(100, 1), np.zeros(100, np.float32), np.zeros(100, np.float32)
    value, m_paper, v_paper = values.astype(np.float64), np.zeros(100), np.zeros(100)
    for step in range(1, 6):
        grads = normal(100, 20 + step)
        g = 0.37 * grads.astype(np.float64)
        m_paper = 0.9 * m_paper + 0.1 * g
        v_paper = 0.999 * v_paper + 0.001 * g**2
        m_hat, v_hat = m_paper / (1 - 0.9**step), v_paper / (1 - 0.999**step)
        value = value - 1e-3 * 0.1 * value - 1e-3 * m_hat / (np.sqrt(v_hat) + 1e-8)
        adamw_update(values, grads, m, v, step=step, **ADAMW)
    np.testing.assert_allclose(values, value, rtol=1e-5, atol=1e-7)


def test_first_adamw_step_moves_by_the_learning_rate():
    values, zeros = np.zeros(3, np.float32), np.zeros(3, np.float32)
    adamw_update(values, np.array([5, -1e-3, 0], np.float32), zeros.copy(), zeros.copy(), lr=0.25, step=1)
    np.testing.assert_allclose(values, [-0.25, 0.25, 0.0], rtol=2e-5)


def test_updates_leave_neighbours_alone():
    buffer = np.full(50, 7, np.float32)
    grads = np.ones(37, np.float32)
    sgd_update(buffer[3:40], grads, None, lr=1.0)
    np.testing.assert_array_equal(buffer[3:40], 6)
    adamw_update(buffer[3:40], grads, np.zeros(37, np.float32), np.zeros(37, np.float32), lr=1.0, step=1)
    np.testing.assert_array_equal(np.delete(buffer, np.s_[3:40]), 7)
    assert (buffer[3:40] < 6).all()


@pytest.mark.parametrize("n", SIZES)
def test_sum_of_squares_same_bits_as_reference(n):
    x = normal(n, n)
    assert sum_of_squares(x) == sum_of_squares_reference(x)
    assert sum_of_squares(x) == pytest.approx(math.fsum(float(value) ** 2 for value in x), rel=1e-14)


@settings(max_examples=100, deadline=None)
@given(x=arrays(np.float32, st.integers(0, 100), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_sum_of_squares_same_bits_on_any_floats(x):
    assert sum_of_squares(x) == sum_of_squares_reference(x)


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_sum_of_squares_shows_nonfinite_values(special):
    x = np.ones(100, np.float32)
    x[63] = special
    assert not math.isfinite(sum_of_squares(x))


def test_sum_of_squares_does_not_overflow():
    assert sum_of_squares(np.full(100, 3e38, np.float32)) == pytest.approx(100 * 9e76, rel=1e-6)


def slices(count: int) -> list[np.ndarray]:
    return [np.zeros(10, np.float32) for _ in range(count)]


@pytest.mark.parametrize(
    "wrong", [np.zeros(10), np.zeros(9, np.float32), np.zeros((10, 1), np.float32), np.zeros(20, np.float32)[::2]]
)
@pytest.mark.parametrize("position", [1, 2, 3])
def test_slices_that_do_not_fit_are_refused(wrong, position):
    arguments = slices(4)
    arguments[position] = wrong
    with pytest.raises(ValueError, match="contiguous float32"):
        lamb_direction(*arguments, step=1)
    with pytest.raises(ValueError, match="contiguous float32"):
        frozen_adam_update(*arguments, lr=0.1, step=2, frozen_step=1)
    with pytest.raises(ValueError, match="contiguous float32"):
        adamw_update(*arguments, lr=0.1, step=1)
    if position < 3:
        with pytest.raises(ValueError, match="contiguous float32"):
            sgd_update(*arguments[:3], lr=0.1)
    if wrong.shape != (9,):
        with pytest.raises(ValueError, match="contiguous float32"):
            sum_of_squares(wrong)


def test_hyperparameters_out_of_range_are_refused():
    with pytest.raises(ValueError, match="step: expected 1"):
        adamw_update(*slices(4), lr=0.1, step=0)
    with pytest.raises(ValueError, match=r"beta1: .* received 1.0"):
        adamw_update(*slices(4), lr=0.1, beta1=1.0, step=1)
    with pytest.raises(ValueError, match=r"beta2: .* received -0.1"):
        adamw_update(*slices(4), lr=0.1, beta2=-0.1, step=1)


def test_hyperparameters_of_lamb_and_onebit_adam_out_of_range_are_refused():
    with pytest.raises(ValueError, match="step: expected 1"):
        lamb_direction(*slices(4), step=0)
    with pytest.raises(ValueError, match=r"beta2: .* received 1.0"):
        lamb_direction(*slices(4), beta2=1.0, step=1)
    for frozen_step in (0, 5):
        with pytest.raises(ValueError, match="frozen_step: expected 1 or more and less than step 5"):
            frozen_adam_update(*slices(4), lr=0.1, step=5, frozen_step=frozen_step)
    with pytest.raises(ValueError, match=r"beta1: .* received 1.0"):
        frozen_adam_update(*slices(4), lr=0.1, beta1=1.0, step=5, frozen_step=2)
    with pytest.raises(ValueError, match=r"beta2: .* received -1.0"):
        frozen_adam_update(*slices(4), lr=0.1, beta2=-1.0, step=5, frozen_step=2)
    with pytest.raises(ValueError, match="num_ranks: expected at least 1"):
        momentum_share(*slices(2), beta1=0.9, num_ranks=0)
    with pytest.raises(ValueError, match=r"beta1: .* received 1.5"):
        momentum_share(*slices(2), beta1=1.5, num_ranks=1)


def test_native_refuses_wrong_arrays():
    values, grads, m, v = slices(4)
    short = np.zeros(9, np.float32)
    adamw = (0.1, 0.9, 0.999, 1e-8, 0.0, 1.0, 1)
    for call in (
        lambda: native.sgd_update(values, short, None, 0.1, 0.0, 0.0, 1.0),
        lambda: native.sgd_update(values, grads, short, 0.1, 0.0, 0.0, 1.0),
        lambda: native.adamw_update(values, short, m, v, *adamw),
        lambda: native.adamw_update(values, grads, short, v, *adamw),
        lambda: native.adamw_update(values, grads, m, short, *adamw),
        lambda: native.lamb_direction(values, short, m, v, *adamw[1:]),
        lambda: native.lamb_direction(values, grads, m, short, *adamw[1:]),
        lambda: native.frozen_adam_update(values, grads, m, short, *adamw, 1),
        lambda: native.momentum_share(grads, short, 0.9, 1),
    ):
        with pytest.raises(ValueError, match="expected 10 values, received 9"):
            call()
    with pytest.raises(ValueError, match="expected 1 dim"):
        native.sum_of_squares(values.reshape(2, 5))
    with pytest.raises(ValueError, match="aligned"):
        native.sum_of_squares(np.zeros(41, np.uint8)[1:].view(np.float32))
    with pytest.raises(TypeError):
        native.sgd_update(values, grads.astype(np.float64), None, 0.1, 0.0, 0.0, 1.0)
    values.flags.writeable = False
    with pytest.raises(ValueError, match="not writeable"):
        native.sgd_update(values, grads, None, 0.1, 0.0, 0.0, 1.0)
