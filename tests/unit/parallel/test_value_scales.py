"""Scales of values: powers of two that make the gradients of a block of one size."""

from __future__ import annotations

import numpy as np
import pytest

from lepton_mpi.parallel.value_scales import relative_scales


def test_scales_follow_the_size_within_each_block() -> None:
    sizes = np.repeat(np.float32([1, 4, 4, 1]), 512)
    expected = np.repeat(np.float32([2**-2, 2**0, 2**0, 2**-2]), 512)  # over sqrt((1 + 16) / 2) = 2.9
    np.testing.assert_array_equal(relative_scales(sizes**2), expected)
    np.testing.assert_array_equal(relative_scales((1e-12 * sizes) ** 2), expected)


@pytest.mark.parametrize("num_values", [0, 1, 3, 1023, 1024, 1025, 5000])
def test_scaled_values_are_of_one_size(num_values: int) -> None:
    sizes = np.exp(np.random.default_rng(num_values).uniform(-1, 1, num_values)).astype(np.float32)
    scales = relative_scales(sizes**2)
    assert scales.dtype == np.float32 and scales.shape == (num_values,)
    mantissas, _ = np.frexp(scales)
    assert (mantissas == 0.5).all()
    for start in range(0, num_values, 1024):
        block = slice(start, start + 1024)
        scaled = sizes[block] / scales[block] / np.sqrt(np.mean(sizes[block].astype(float) ** 2))
        assert (scaled >= 0.707).all() and (scaled <= 1.415).all()


def test_small_values_count_as_a_sixteenth_and_large_ones_as_they_are() -> None:
    squares = np.full(1024, 1e-10, np.float32)
    squares[7], squares[8] = 1024, 0
    scales = relative_scales(squares)
    assert scales[7] == 32 and (np.delete(scales, 7) == 1 / 16).all()


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_blocks_of_unknown_size_stay_as_they_are(value: float) -> None:
    squares = np.ones(3000, np.float32)
    squares[:1024] = value if value == 0 else 1
    squares[5] = value
    scales = relative_scales(squares)
    assert (scales == 1).all()
