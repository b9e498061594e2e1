"""Deep gradient compression: nothing is lost, what was sent is forgotten, and the share that is sent falls."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from lepton_mpi.optim.momentum_correction import accumulate, clear_sent, density

NUM = 101


def gradients(steps: int) -> list[np.ndarray]:
    return [np.random.default_rng(step).standard_normal(NUM).astype(np.float32) for step in range(steps)]


@pytest.mark.parametrize("nesterov", [False, True])
def test_sending_everything_is_momentum(nesterov: bool) -> None:
    """With every value sent at every step, and the momentum kept, the sums are the steps of plain momentum."""
    u, v, m = np.zeros(NUM, np.float32), np.zeros(NUM, np.float32), np.zeros(NUM)
    for grads in gradients(6):
        kept = grads.copy()
        accumulate(u, v, grads, momentum=0.9, nesterov=nesterov)
        assert np.array_equal(grads, kept)
        m = 0.9 * m + grads
        np.testing.assert_allclose(v, grads + 0.9 * m if nesterov else m, rtol=1e-5, atol=1e-6)
        clear_sent(u, v, np.arange(NUM), masking=False)
        assert not v.any()


def test_what_waits_arrives_with_its_momentum() -> None:
    """Values that were held back for three steps have moved by as much as plain momentum would have by then."""
    u, v = np.zeros(NUM, np.float32), np.zeros(NUM, np.float32)
    m, moved = np.zeros(NUM), np.zeros(NUM)
    for grads in gradients(3):
        accumulate(u, v, grads, momentum=0.5)
        m = 0.5 * m + grads
        moved += m
    np.testing.assert_allclose(v, moved, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("as_mask", [True, False])
def test_what_was_sent_is_forgotten(as_mask: bool) -> None:
    u, v = np.zeros(NUM, np.float32), np.zeros(NUM, np.float32)
    accumulate(u, v, gradients(1)[0], momentum=0.9)
    before = u.copy(), v.copy()
    mask = np.abs(v) > 1.0
    assert 0 < mask.sum() < NUM
    clear_sent(u, v, mask if as_mask else np.flatnonzero(mask))
    for now, then in zip((u, v), before, strict=True):
        assert not now[mask].any()
        assert np.array_equal(now[~mask], then[~mask])


def test_the_share_falls_to_the_final_one() -> None:
    shares = [density(step, 0.001, 100) for step in range(103)]
    assert shares[0] == 0.25
    assert shares[100:] == [0.001] * 3
    assert all(a > b for a, b in pairwise(shares[:101]))
    assert shares[50] == pytest.approx((0.25 * 0.001) ** 0.5)
    paper = [density(step, 0.25**5, 4) for step in range(5)]
    assert paper == pytest.approx([0.25, 0.0625, 0.015625, 0.00390625, 0.0009765625])
    assert density(0, 0.01, 0) == 0.01
    assert density(3, 0.5, 10) == 0.5  # more than a quarter: no warm-up


def test_what_is_refused() -> None:
    u, v, grads = (np.zeros(3, np.float32) for _ in range(3))
    with pytest.raises(ValueError, match="momentum: expected"):
        accumulate(u, v, grads, momentum=1.0)
    with pytest.raises(ValueError, match=r"grads: expected contiguous float32 of shape \(3,\)"):
        accumulate(u, v, grads[:2], momentum=0.5)
    for final in (0.0, 1.5):
        with pytest.raises(ValueError, match="final: expected a share"):
            density(0, final, 10)
