"""Softmax of attention scores: C++ against the NumPy form, and that against what it means."""

from __future__ import annotations

import numpy as np
import pytest

from lepton_mpi import native
from lepton_mpi.ops.softmax import softmax, softmax_backward, softmax_backward_reference, softmax_reference

SHAPES = [
    (1, 1, 1, 1),
    (2, 3, 5, 7),
    (1, 2, 16, 16),
    (3, 1, 4, 33),
    (2, 2, 3, 64),
    (0, 2, 3, 4),
    (2, 0, 3, 4),
    (1, 2, 3, 0),
    (1, 1, 131, 131),
]


def scores_of(shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
    return (4 * np.random.default_rng(1).standard_normal(shape)).astype(dtype)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("first_query", [None, 0, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_native_against_reference(shape: tuple[int, ...], first_query: int | None, masked: bool) -> None:
    mask = np.random.default_rng(2).random((shape[0], shape[3])) < 0.6 if masked else None
    p, expected = scores_of(shape), scores_of(shape, np.float64)
    softmax(p, scale=0.3, first_query=first_query, key_mask=mask)
    softmax_reference(expected, scale=0.3, first_query=first_query, key_mask=mask)
    np.testing.assert_allclose(p, expected, rtol=2e-6, atol=1e-9)
    assert ((p == 0) == (expected == 0)).all()
    dp = scores_of(shape)[..., ::-1].copy()
    expected_ds = dp.astype(np.float64)
    softmax_backward(dp, p, scale=0.3, first_query=first_query)
    softmax_backward_reference(expected_ds, expected, scale=0.3, first_query=first_query)
    np.testing.assert_allclose(dp, expected_ds, rtol=1e-4, atol=2e-6)


def test_the_reference_against_the_definition() -> None:
    scores = scores_of((1, 1, 2, 4), np.float64)
    p = scores.copy()
    softmax(p, scale=2.0, first_query=1, key_mask=np.array([[True, False, True, True]]))
    powers = np.exp(2 * scores[0, 0])
    np.testing.assert_allclose(p[0, 0, 0], [1, 0, 0, 0])
    np.testing.assert_allclose(p[0, 0, 1], powers[1] * [1, 0, 1, 0] / (powers[1, 0] + powers[1, 2]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_row_without_keys_is_zero(dtype: type) -> None:
    p = scores_of((1, 2, 3, 20), dtype)
    softmax(p, key_mask=np.zeros((1, 20), bool))
    assert (p == 0).all()
    dp = scores_of((1, 2, 3, 20), dtype)
    softmax_backward(dp, p)
    assert (dp == 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_scores_do_not_overflow_and_nan_stays(dtype: type) -> None:
    p = np.array([[[[1e30, -1e30, 1e30, -np.inf], [np.nan, 1, 2, 3]]]], dtype)
    softmax(p)
    np.testing.assert_array_equal(p[0, 0, 0], [0.5, 0, 0.5, 0])
    assert np.isnan(p[0, 0, 1]).all()


def test_exponentials_over_their_whole_range() -> None:
    x = np.linspace(-100, 0, 20001, dtype=np.float32).reshape(1, 1, 1, -1)
    p = x.copy()
    softmax(p)
    expected = np.exp(x.astype(np.float64))
    expected /= expected.sum()
    normal = x > -87
    np.testing.assert_allclose(p[normal], expected[normal], rtol=1e-6, atol=1e-44)
    assert (p[x < -87.4] == 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scores": np.zeros((2, 3), np.float32)}, "scores"),
        ({"scores": np.zeros((1, 1, 2, 4), np.float32)[..., ::2]}, "contiguous"),
        ({"key_mask": np.ones((1, 3), bool)}, "key_mask"),
        ({"key_mask": np.ones((1, 2), np.uint8)}, "expected bool"),
        ({"first_query": -1}, "first_query"),
    ],
)
def test_wrong_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        softmax(**{"scores": np.zeros((1, 1, 2, 2), np.float32), **arguments})


def test_wrong_arguments_backward() -> None:
    dp = np.zeros((1, 1, 2, 4), np.float32)
    with pytest.raises(ValueError, match="p: expected shape"):
        softmax_backward(dp, dp[:, :, :1])
    with pytest.raises(ValueError, match="p: expected a contiguous"):
        softmax_backward(dp, dp.swapaxes(2, 3).copy().swapaxes(2, 3))


def test_the_extension_checks_for_itself() -> None:
    scores = np.zeros((1, 1, 2, 4), np.float32)
    for arguments, message in (
        ((scores[0], None, None, 1.0), "4 dims"),
        ((scores, np.ones((1, 3), bool), None, 1.0), "key_mask"),
        ((scores, None, -1, 1.0), "first_query"),
    ):
        with pytest.raises(ValueError, match=message):
            native.softmax(*arguments)
    with pytest.raises(ValueError, match="shape of dp"):
        native.softmax_backward(scores, scores[:, :, :1], None, 1.0)
    with pytest.raises(TypeError):
        native.softmax(scores[..., ::2], None, None, 1.0)
