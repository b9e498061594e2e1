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
        epoch_samples, epoch_loss, epoch_correct: of the present epoch so far: samples, and sums over them of loss and of right
            answers, for the epoch's own line.
    """

    step: int = 0
    epoch: int = 0
    position: int = 0
    best: float = math.nan
    stale: int = 0
    epoch_samples: int = 0
    epoch_loss: float = 0.0
    epoch_correct: float = 0.0

    def advance(self, following: tuple[int, int]) -> TrainState:
        """Return the state after a step whose batch is followed by this (epoch, position). Local."""
        epoch, position = following
        return replace(self, step=self.step + 1, epoch=epoch, position=position)

    def note(self, num_samples: int, loss: float, accuracy: float) -> TrainState:
        """Return the state with the means of one more step of the epoch. Local."""
        return replace(
            self,
            epoch_samples=self.epoch_samples + num_samples,
            epoch_loss=self.epoch_loss + loss * num_samples,
            epoch_correct=self.epoch_correct + accuracy * num_samples,
        )

    def begin_epoch(self) -> TrainState:
        """Return the state with no step noted. Local."""
        return replace(self, epoch_samples=0, epoch_loss=0.0, epoch_correct=0.0)

    @property
    def mean_loss(self) -> float:
        """Mean loss over the samples of the epoch so far; nan without any."""
        return self.epoch_loss / self.epoch_samples if self.epoch_samples else math.nan

    @property
    def mean_accuracy(self) -> float:
        """Share of right answers of the epoch so far; nan without any."""
        return self.epoch_correct / self.epoch_samples if self.epoch_samples else math.nan

    def judge(self, value: float, higher_is_better: bool) -> TrainState:
        """Return the state after an evaluation that found this value of the watched metric; nan is never better. Local."""
        if math.isnan(value) or (value <= self.best if higher_is_better else value >= self.best):
            return replace(self, stale=self.stale + 1)
        return replace(self, best=value, stale=0)
