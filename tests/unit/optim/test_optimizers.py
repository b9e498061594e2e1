"""Optimizers against their published formulas, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lepton_mpi.config.schema import OptimizerConfig
from lepton_mpi.optim.adamw import AdamW
from lepton_mpi.optim.lamb import Lamb
from lepton_mpi.optim.onebit_adam import OneBitAdam
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
    for name, kind in (("lamb", Lamb), ("onebit_adam", OneBitAdam)):
        made = make_optimizer(OptimizerConfig(name=name))
        assert type(made) is kind
        assert made.slot_names == adamw.slot_names
    assert adamw.for_steps(100) is adamw


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


def lamb_step(w: NDArray[Any], g: NDArray[Any], m: NDArray[Any], v: NDArray[Any], t: int, decay: float) -> NDArray[Any]:
    """Do algorithm 2 of the paper to whole parameters, with phi the identity; m and v are changed."""
    m[:], v[:] = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
    r = m / (1 - 0.8**t) / (np.sqrt(v / (1 - 0.95**t)) + 1e-3) + decay * w
    return w - LR * np.linalg.norm(w) / np.linalg.norm(r) * r


@pytest.mark.parametrize("decay", [0.1, 0.0])
def test_lamb(decay: float) -> None:
    """A parameter in two slices follows the paper, and the two norms are all that the slices must know of each other."""
    random = np.random.default_rng(3)
    values = random.standard_normal(NUM).astype(np.float32)
    w, m, v = values.astype(np.float64), np.zeros(NUM), np.zeros(NUM)
    slots = {name: np.zeros(NUM, np.float32) for name in ("first_moment", "second_moment")}
    optimizer = make_optimizer(OptimizerConfig(name="lamb", beta1=0.8, beta2=0.95, epsilon=1e-3))
    assert optimizer.needs_norms
    for t in range(1, STEPS + 1):
        grads = random.standard_normal(NUM).astype(np.float32)
        w = lamb_step(w, grads.astype(np.float64) * 0.5, m, v, t, decay)
        parts = [slice(0, 300), slice(300, NUM)]
        for here in parts:
            own = {name: slot[here] for name, slot in slots.items()}
            optimizer.prepare(values[here], grads[here], own, 0.5, decay, t)
        factor = optimizer.layer_factor(float(np.linalg.norm(values)), float(np.linalg.norm(grads)))
        for here in parts:
            optimizer.update(values[here], grads[here], {}, LR * factor, 0.5, decay, t)
    np.testing.assert_allclose(values, w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slots["first_moment"], m, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(slots["second_moment"], v, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("norms", "factor"), [((3.0, 2.0), 1.5), ((0.0, 2.0), 1.0), ((3.0, 0.0), 1.0), ((0.0, 0.0), 1.0)])
def test_trust_ratio(norms: tuple[float, float], factor: float) -> None:
    assert make_optimizer(OptimizerConfig(name="lamb")).layer_factor(*norms) == factor


def test_what_other_optimizers_have_no_part_in() -> None:
    nothing = np.zeros(3, np.float32)
    for name in ("sgd", "adamw", "onebit_adam"):
        optimizer = make_optimizer(OptimizerConfig(name=name))
        assert not optimizer.needs_norms
        with pytest.raises(NotImplementedError, match="updates in one phase"):
            optimizer.prepare(nothing, nothing, {}, 1.0, 0.0, 1)
        with pytest.raises(NotImplementedError, match="updates in one phase"):
            optimizer.layer_factor(1.0, 1.0)
    for name in ("sgd", "adamw", "lamb"):
        optimizer = make_optimizer(OptimizerConfig(name=name))
        assert not optimizer.replaces_outgoing(10**9)
        with pytest.raises(NotImplementedError, match="adds up gradients"):
            optimizer.outgoing(nothing, {}, 2)


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_onebit_adam(num_ranks: int) -> None:
    """Without a codec: Adam, then Adam whose variance stands still; values that never had a gradient only decay."""
    random = np.random.default_rng(4)
    values = random.standard_normal(NUM).astype(np.float32)
    begin = values[:10].copy()
    w, m, v = values.astype(np.float64), np.zeros(NUM), np.zeros(NUM)
    slots = {name: np.zeros(NUM, np.float32) for name in ("first_moment", "second_moment")}
    config = OptimizerConfig(name="onebit_adam", beta1=0.8, beta2=0.95, epsilon=1e-3, freeze_share=0.3)
    optimizer = make_optimizer(config).for_steps(10)
    for t in range(1, 9):
        grads = [random.standard_normal(NUM).astype(np.float32) for _ in range(num_ranks)]
        for grad in grads:
            grad[:10] = 0
        g = 0.5 * sum(grad.astype(np.float64) for grad in grads)
        assert optimizer.replaces_outgoing(t) == (t > 3)
        if t > 3:
            for grad in grads:
                optimizer.outgoing(grad, slots, num_ranks)
                grad[:10] += 1e-3 * (-1) ** t  # what one bit a value makes of 0
        decay = 0.1 if t > 3 else 0.0
        optimizer.update(values, sum(grads), slots, LR, 0.5, decay, t)  # type: ignore[arg-type]
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2 if t <= 3 else v
        w -= LR * (m / (1 - 0.8**t) / (np.sqrt(v / (1 - 0.95 ** min(t, 3))) + 1e-3) + decay * w)
    np.testing.assert_allclose(values[10:], w[10:], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slots["first_moment"][10:], m[10:], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(values[:10], begin * (1 - 0.1 * LR) ** 5, rtol=1e-6)


@pytest.mark.parametrize(("share", "steps", "freeze_step"), [(0.2, 100, 20), (0.0, 100, 1), (0.5, 3, 2), (1.0, 7, 7)])
def test_when_the_variance_freezes(share: float, steps: int, freeze_step: int) -> None:
    optimizer = make_optimizer(OptimizerConfig(name="onebit_adam", freeze_share=share)).for_steps(steps)
    assert [optimizer.replaces_outgoing(step) for step in (freeze_step, freeze_step + 1)] == [False, True]
    assert optimizer.warmup_steps == freeze_step  # what codecs make of small gradients must not get into the variance
