"""Learning-rate schedules and clipping."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from lepton_mpi.config.schema import OptimizerConfig
from lepton_mpi.optim.clipping import clip_scale
from lepton_mpi.optim.schedule import decay_end, learning_rate


def test_constant() -> None:
    config = OptimizerConfig(lr=0.5, schedule="constant")
    assert [learning_rate(config, step, 10) for step in (0, 5, 9, 100)] == [0.5] * 4


def test_warm_up_rises_from_above_zero_to_the_peak() -> None:
    config = OptimizerConfig(lr=0.8, schedule="constant", warmup_steps=4)
    assert [learning_rate(config, step, 10) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])


def test_cosine_falls_from_the_peak_to_the_minimum() -> None:
    config = OptimizerConfig(lr=1.0, schedule="cosine", warmup_steps=2, min_lr=0.2)
    rates = [learning_rate(config, step, 12) for step in range(15)]
    assert rates[2] == 1.0
    assert rates[7] == pytest.approx(0.6)  # half-way
    assert rates[12:] == pytest.approx([0.2] * 3)
    assert all(a > b for a, b in pairwise(rates[2:13]))
    assert rates[4] == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi * 0.2)) / 2)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"schedule": "linear"}, [1.0, 0.84, 0.6, 0.2, 0.2]),
        ({"schedule": "polynomial"}, [1.0, 0.2 + 0.8 * 0.64, 0.4, 0.2, 0.2]),
        ({"schedule": "polynomial", "decay_power": 1.0}, [1.0, 0.84, 0.6, 0.2, 0.2]),
        ({"schedule": "step"}, [1.0, 1.0, 0.2, 0.2, 0.2]),
        ({"schedule": "step", "drop_factor": 0.5, "drop_at": (0.8, 0.2)}, [1.0, 0.5, 0.5, 0.25, 0.25]),
        ({"schedule": "step", "drop_at": ()}, [1.0] * 5),
    ],
)
def test_decays_that_end(settings: dict[str, Any], expected: list[float]) -> None:
    config = OptimizerConfig(lr=1.0, min_lr=0.2, warmup_steps=2, **settings)
    assert [learning_rate(config, step, 12) for step in (2, 4, 7, 12, 30)] == pytest.approx(expected)
    assert learning_rate(config, 0, 12) == 0.5


def test_inverse_square_root() -> None:
    config = OptimizerConfig(lr=1.0, schedule="inverse_sqrt", warmup_steps=4)
    assert [learning_rate(config, step, 10) for step in (3, 4, 15, 63)] == pytest.approx([1.0, 0.8**0.5, 0.5, 0.25])
    assert learning_rate(replace(config, min_lr=0.3), 63, 10) == 0.3
    assert learning_rate(replace(config, warmup_steps=0), 3, 10) == 0.5


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "polynomial", "step", "inverse_sqrt"])
def test_every_schedule_starts_at_the_peak_and_never_rises(schedule: str) -> None:
    config = OptimizerConfig(lr=0.7, schedule=schedule, warmup_steps=1, min_lr=0.01)
    rates = [learning_rate(config, step, 20) for step in range(30)]
    assert rates[0] == 0.7
    assert all(a >= b >= 0.01 for a, b in pairwise(rates))


def test_more_warm_up_than_steps() -> None:
    config = OptimizerConfig(lr=1.0, warmup_steps=10)
    assert learning_rate(config, 4, 5) == pytest.approx(0.5)


def test_where_the_cosine_ends() -> None:
    assert decay_end(OptimizerConfig(), 300, 20) == 300  # cut short by train.steps
    assert decay_end(OptimizerConfig(), 300, 400) == 400  # continued beyond the epochs
    assert decay_end(OptimizerConfig(warmup_steps=5, decay_steps=50), 300, 20) == 55


@pytest.mark.parametrize(("norm", "clip_norm", "expected"), [(2, 1, 0.5), (1, 1, 1), (0.5, 1, 1), (0, 1, 1), (9, 0, 1), (0, 0, 1)])
def test_clipping(norm: float, clip_norm: float, expected: float) -> None:
    assert clip_scale(norm, clip_norm) == expected
