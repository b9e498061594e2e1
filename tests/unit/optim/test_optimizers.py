"""Optimizers against their published formulas, in float64."""

from __future__ import annotations

import numpy as np
import pytest

from lepton_mpi.config.schema import OptimizerConfig
from lepton_mpi.optim.adamw import AdamW
from lepton_mpi.optim.registry import make_optimizer
from lepton_mpi.optim.sgd import SGD

NUM, STEPS, LR = 1000, 5, 0.02


def test_registry() -> None:
    sgd = make_optimizer(OptimizerConfig(name="sgd"))
    assert type(sgd) is SGD
    assert sgd.slot_names == ("momentum",)
    adamw = make_optimizer(OptimizerConfig(name="adamw"))
    assert type(adamw) is AdamW
    assert adamw.slot_names == ("first_moment", "second_moment")


@pytest.mark.parametrize("decay", [0.1, 0.0])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd(momentum: float, decay: float) -> None:
    random = np.random.default_rng(1)
    values = random.standard_normal(NUM).astype(np.float32)
    w, m = values.astype(np.float64), np.zeros(NUM)
    slots = {"momentum": np.zeros(NUM, np.float32)}
    optimizer = make_optimizer(OptimizerConfig(name="sgd", momentum=momentum))
    for step in range(STEPS):
        grads = random.standard_normal(NUM).astype(np.float32)
        kept = grads.copy()
        optimizer.update(values, grads, slots, LR, 0.5, decay, step + 1)
        m = momentum * m + grads.astype(np.float64) * 0.5 + decay * w
        w -= LR * m
        assert np.array_equal(grads, kept)
    np.testing.assert_allclose(values, w, rtol=1e-5, atol=1e-6)
    assert slots["momentum"].any() == (momentum > 0)


@pytest.mark.parametrize("decay", [0.1, 0.0])
def test_adamw(decay: float) -> None:
    random = np.random.default_rng(2)
    values = random.standard_normal(NUM).astype(np.float32)
    w, m, v = values.astype(np.float64), np.zeros(NUM), np.zeros(NUM)
    slots = {name: np.zeros(NUM, np.float32) for name in ("first_moment", "second_moment")}
    optimizer = make_optimizer(OptimizerConfig(name="adamw", beta1=0.8, beta2=0.95, epsilon=1e-3))
    for t in range(1, STEPS + 1):
        grads = random.standard_normal(NUM).astype(np.float32)
        optimizer.update(values, grads, slots, LR, 0.5, decay, t)
        g = grads.astype(np.float64) * 0.5
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
        w -= LR * (m / (1 - 0.8**t) / (np.sqrt(v / (1 - 0.95**t)) + 1e-3) + decay * w)
    np.testing.assert_allclose(values, w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slots["first_moment"], m, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(slots["second_moment"], v, rtol=1e-5, atol=1e-9)


def test_slices_of_a_buffer_are_updated_alone() -> None:
    values, grads = np.ones(64, np.float32), np.ones(64, np.float32)
    here = slice(16, 32)
    make_optimizer(OptimizerConfig(name="sgd", momentum=0.0)).update(
        values[here], grads[here], {"momentum": np.zeros(16, np.float32)}, 0.25, 1.0, 0.0, 1
    )
    assert (values[here] == 0.75).all()
    assert (np.delete(values, np.r_[here]) == 1).all()
