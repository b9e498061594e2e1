"""The kernels behind exact sums: rounding to units, sums in any order, squares in two parts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lepton_mpi import native

SIZES = [0, 1, 3, 7, 8, 9, 1023, 1024, 1025, 5000]


def draw(n: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.standard_normal(n) * 10.0 ** random.integers(-6, 1, n)).astype(np.float32)


@pytest.mark.parametrize("n", SIZES)
def test_gradients_are_rounded_to_units_and_taken(n: int) -> None:
    grads, totals, unit = draw(n), np.full(n, 3.0), 2.0**-30
    expected = 3.0 + np.rint(grads.astype(np.float64) / unit) * unit
    largest = float(np.abs(grads).max(initial=0.0))
    assert native.accumulate_rounded(grads, totals, unit) == largest
    assert totals.tobytes() == expected.tobytes()
    assert not grads.any()


@pytest.mark.parametrize("n", SIZES)
def test_totals_are_the_same_in_any_order(n: int) -> None:
    pieces = [draw(n, seed) for seed in range(7)]
    found = []
    for spread in ([[0, 1, 2, 3, 4, 5, 6]], [[6, 2], [1, 0, 5], [4, 3]], [[3], [], [5, 6, 4, 0, 1, 2]]):
        totals = [np.zeros(n) for _ in spread]
        for mine, total in zip(spread, totals, strict=True):
            for p in mine:
                native.accumulate_rounded(pieces[p].copy(), total, 2.0**-45)
        out, wide = np.empty(n, np.float32), np.empty(n)
        copies = [total.copy() for total in totals]
        native.collect_totals(totals, out)
        native.collect_totals(copies, wide)
        assert out.tobytes() == wide.astype(np.float32).tobytes()
        assert not any(total.any() for total in (*totals, *copies))
        found.append(out.tobytes())
    assert len(set(found)) == 1
    np.testing.assert_allclose(out, np.sum(pieces, axis=0, dtype=np.float64), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("n", SIZES)
def test_squares_add_exactly_over_any_cut(n: int) -> None:
    x = draw(n)
    bits = 2 * math.frexp(float(np.abs(x).max(initial=1.0)))[1]
    high = math.ldexp(1.0, bits + 13 - 52)
    units = (high, math.ldexp(high, 13 - 52))
    whole = native.exact_squares(x, *units)
    for cut in (0, n // 3, n // 2, n):
        one, other = native.exact_squares(x[:cut].copy(), *units), native.exact_squares(x[cut:].copy(), *units)
        assert (one[0] + other[0], one[1] + other[1]) == whole
    assert sum(whole) == pytest.approx(math.fsum(float(v) ** 2 for v in x), rel=1e-14)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_seen(bad: float) -> None:
    x = draw(1500)
    x[1200] = bad
    assert not math.isfinite(native.largest_magnitude(x))
    totals, out = np.zeros(1500), np.empty(1500, np.float32)
    assert not math.isfinite(native.accumulate_rounded(x, totals, 2.0**-40))
    native.collect_totals([totals], out)
    assert not np.isfinite(out[1200]) and np.isfinite(np.delete(out, 1200)).all()


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="totals"):
        native.accumulate_rounded(np.zeros(3, np.float32), np.zeros(4), 1.0)
    with pytest.raises(ValueError, match="totals"):
        native.collect_totals([np.zeros(3), np.zeros(4)], np.zeros(3, np.float32))
