"""Dropout: C++ bit for bit as NumPy's Philox, masks that follow from the global element, its gradient, refusals."""

import numpy as np
import pytest

from lepton_mpi import native
from lepton_mpi.ops.dropout import dropout, dropout_backward, dropout_mask, dropout_mask_reference
from lepton_mpi.runtime.random import random_key

KEY = random_key(3, "dropout", "h.0")


@pytest.mark.parametrize(
    ("shape", "row_size", "row_start"),
    [
        ((1, 1), 1, 0),
        ((3, 5), 5, 0),
        ((4, 7, 3), 21, 0),
        ((5, 6), 13, 7),
        ((2, 1031), 1031, 0),
        ((3, 517), 2000, 3),
        ((0, 5), 5, 0),
        ((3, 0), 5, 2),
    ],
)
@pytest.mark.parametrize(("step", "first_row"), [(0, 0), (2**33 + 5, 11), (7, 2**34 // 5 - 2)])
def test_mask_is_that_of_the_reference(shape, row_size, row_start, step, first_row):
    place = (KEY, step, first_row, row_size, row_start)
    mask = dropout_mask(shape, 0.3, *place)
    np.testing.assert_array_equal(mask, dropout_mask_reference(shape, 0.3, *place))
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    y, same = dropout(x, 0.3, *place)
    np.testing.assert_array_equal(same, mask)
    np.testing.assert_array_equal(y, np.where(mask, x * np.float32(1 / 0.7), 0))


def test_counters_carry_into_their_second_word():
    row = 2**34 // 8  # of 8 elements: the counter passes 2^32 within the first rows
    place = (KEY, 1, row - 3, 8, 0)
    np.testing.assert_array_equal(dropout_mask((9, 8), 0.5, *place), dropout_mask_reference((9, 8), 0.5, *place))


def test_mask_does_not_depend_on_how_a_batch_is_cut():
    x = np.ones((10, 6, 7), np.float32)
    y, mask = dropout(x, 0.4, KEY, 9, 100, 42)
    parts = [dropout(x[first:last], 0.4, KEY, 9, 100 + first, 42) for first, last in ((0, 3), (3, 4), (4, 10))]
    np.testing.assert_array_equal(np.concatenate([part[0] for part in parts]), y)
    np.testing.assert_array_equal(np.concatenate([part[1] for part in parts]), mask)
    halves = [dropout_mask((10, 3, 7), 0.4, KEY, 9, 100, 42, start) for start in (0, 21)]
    np.testing.assert_array_equal(np.concatenate(halves, axis=1), mask)


def test_masks_differ_between_steps_keys_and_rows():
    mask = dropout_mask((8, 64), 0.5, KEY, 0, 0, 64)
    for other in (dropout_mask((8, 64), 0.5, KEY, 1, 0, 64), dropout_mask((8, 64), 0.5, KEY + 1, 0, 0, 64)):
        assert 0.4 < (mask == other).mean() < 0.6
    assert len({row.tobytes() for row in mask}) == 8


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_rate_and_mean(rate):
    y, mask = dropout(np.ones((1000, 100), np.float32), rate, KEY, 0, 0, 100)
    assert mask.mean() == pytest.approx(1 - rate, abs=0.005)  # three deviations
    assert y.mean() == pytest.approx(1, abs=0.03)


def test_rate_zero_keeps_everything():
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    y, mask = dropout(x, 0.0, KEY, 0, 0, 3)
    np.testing.assert_array_equal(y, x)
    assert mask.all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_backward_is_the_same_map(dtype):
    x = np.random.default_rng(1).standard_normal((5, 3, 7)).astype(dtype)
    y, mask = dropout(x, 0.25, KEY, 2, 1, 21)
    assert y.dtype == dtype
    np.testing.assert_array_equal(dropout_backward(x, mask, 0.25), y)


def test_nan_is_not_dropped():
    x = np.full((1, 64), np.nan, np.float32)
    assert np.isnan(dropout(x, 0.5, KEY, 0, 0, 64)[0]).all()


def test_refusals():
    x = np.ones((2, 3), np.float32)
    for rate in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"rate: expected a probability in \[0, 1\)"):
            dropout(x, rate, KEY, 0, 0, 3)
    for row_size, row_start in ((2, 0), (4, 2), (3, -1)):
        with pytest.raises(ValueError, match="shape: expected samples of at most"):
            dropout_mask(x.shape, 0.5, KEY, 0, 0, row_size, row_start)
    with pytest.raises(ValueError, match="mask: expected shape"):
        dropout_backward(x, np.ones((2, 2), bool), 0.5)
    with pytest.raises(ValueError, match="mask: expected rows of at most 3 elements, received 8 elements in 2 rows"):
        native.dropout_mask(np.zeros(8, np.uint8), 2, KEY, 0, 0, 3, 0, 1)
