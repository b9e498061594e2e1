"""Where a run is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainState:
    """What, with parameters and optimizer state, determines the rest of a run.

    Attributes:
        step: steps done.
        epoch: pass over the training set that the next step belongs to.
        position: samples of that epoch already used.
    """

    step: int = 0
    epoch: int = 0
    position: int = 0

    def advance(self, following: tuple[int, int]) -> TrainState:
        """Return the state after a step whose batch is followed by this (epoch, position). Local."""
        return TrainState(self.step + 1, *following)
