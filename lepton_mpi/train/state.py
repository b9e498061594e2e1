"""Where a run is."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class TrainState:
    """What, with parameters and optimizer state, determines the rest of a run.

    Attributes:
        step: steps done.
        epoch: pass over the training set that the next step belongs to.
        position: samples of that epoch already used.
        best: best value so far of the metric that is watched; nan before the first evaluation.
        stale: evaluations since then that were not better.
    """

    step: int = 0
    epoch: int = 0
    position: int = 0
    best: float = math.nan
    stale: int = 0

    def advance(self, following: tuple[int, int]) -> TrainState:
        """Return the state after a step whose batch is followed by this (epoch, position). Local."""
        epoch, position = following
        return replace(self, step=self.step + 1, epoch=epoch, position=position)

    def judge(self, value: float, higher_is_better: bool) -> TrainState:
        """Return the state after an evaluation that found this value of the watched metric; nan is never better. Local."""
        if math.isnan(value) or (value <= self.best if higher_is_better else value >= self.best):
            return replace(self, stale=self.stale + 1)
        return replace(self, best=value, stale=0)
