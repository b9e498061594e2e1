"""Momentum before compression: SGD where nothing is lost, and nothing lost for good where something waits."""

from __future__ import annotations

import numpy as np
import pytest

from lepton_mpi.config.schema import OptimizerConfig
from lepton_mpi.optim.momentum_correction import RANK_MOMENTUM, CorrectedSGD
from lepton_mpi.optim.registry import make_optimizer

NUM, LR, MOMENTUM = 1001, 0.1, 0.8
CONFIG = OptimizerConfig(name="sgd", momentum=MOMENTUM, momentum_correction=True)


@pytest.mark.parametrize("decay", [0.1, 0.0])
@pytest.mark.parametrize("num_ranks", [1, 3])
def test_exact_sums_make_it_sgd(num_ranks: int, decay: float) -> None:
    optimizer = make_optimizer(CONFIG)
    assert type(optimizer) is CorrectedSGD
    assert optimizer.replaces_outgoing(1)
    random = np.random.default_rng(1)
    values = random.standard_normal(NUM).astype(np.float32)
    w, m = values.astype(np.float64), np.zeros(NUM)
    slots = {"momentum": np.zeros(NUM, np.float32)}
    own = [{RANK_MOMENTUM: np.zeros(NUM, np.float32)} for _ in range(num_ranks)]
    for step in range(1, 7):
        grads = [random.standard_normal(NUM).astype(np.float32) for _ in own]
        m = MOMENTUM * m + 0.5 * sum(g.astype(np.float64) for g in grads) + decay * w
        for g, rank_slots in zip(grads, own, strict=True):
            optimizer.outgoing(g, rank_slots, num_ranks)
        total = sum(grads[1:], grads[0])
        kept = total.copy()
        optimizer.update(values, total, slots, LR, 0.5, decay, step)
        assert np.array_equal(total, kept)
        w -= LR * m
    np.testing.assert_allclose(values, w, rtol=1e-5, atol=1e-5)
    assert slots["momentum"].any() == (decay > 0)


def test_it_goes_on_from_the_momentum_of_plain_sgd() -> None:
    random = np.random.default_rng(2)
    values = random.standard_normal(NUM).astype(np.float32)
    expected, slots = values.copy(), {"momentum": random.standard_normal(NUM).astype(np.float32)}
    slots_expected, own = {"momentum": slots["momentum"].copy()}, {RANK_MOMENTUM: np.zeros(NUM, np.float32)}
    plain, corrected = make_optimizer(OptimizerConfig(name="sgd", momentum=MOMENTUM)), make_optimizer(CONFIG)
    for step in range(1, 5):
        grads = random.standard_normal(NUM).astype(np.float32)
        plain.update(expected, grads, slots_expected, LR, 1.0, 0.01, step)
        corrected.outgoing(grads, own, 1)
        corrected.update(values, grads, slots, LR, 1.0, 0.01, step)
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-5)


def test_what_waits_arrives_with_its_momentum() -> None:
    """Values that feedback holds back for three steps then move by as much as with plain momentum."""
    optimizer, own = make_optimizer(CONFIG), {RANK_MOMENTUM: np.zeros(NUM, np.float32)}
    waiting, m, moved = np.zeros(NUM, np.float32), np.zeros(NUM), np.zeros(NUM)
    for step in range(3):
        grads = np.random.default_rng(step).standard_normal(NUM).astype(np.float32)
        m = MOMENTUM * m + grads
        moved += m
        optimizer.outgoing(grads, own, 1)
        waiting += grads
    values = np.zeros(NUM, np.float32)
    optimizer.update(values, waiting, {"momentum": np.zeros(NUM, np.float32)}, LR, 1.0, 0.0, 3)
    np.testing.assert_allclose(values, -LR * moved, rtol=1e-5, atol=1e-6)
