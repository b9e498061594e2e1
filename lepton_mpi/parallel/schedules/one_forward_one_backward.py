"""1F1B: forward and backward alternate, so that few micro-batches are in flight.

Narayanan et al. 2021, "Efficient large-scale language model training on GPU clusters", section 2.2 (PipeDream-Flush).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from lepton_mpi.parallel.schedules.schedule import Action, Kind, PassCosts, PipelineShape, Schedule, backward


@final
class OneForwardOneBackward(Schedule):
    """After a warm-up of S - 1 - stage forward passes, forward and backward alternate."""

    def order(self, stage: int, shape: PipelineShape) -> Iterator[Action]:
        """Yield the warm-up, the alternation, and the backward passes that are left."""
        num = shape.micro_batches
        warm_up = min(shape.stages - 1 - stage, num)
        for m in range(warm_up):
            yield Action(Kind.FORWARD, m)
        for m in range(num):
            if warm_up + m < num:
                yield Action(Kind.FORWARD, warm_up + m)
            yield from backward(m)

    def peak_in_flight(self, stage: int, shape: PipelineShape) -> int:
        """Return min(S - stage, M)."""
        return min(shape.stages - stage, shape.micro_batches)

    def idle(self, shape: PipelineShape, costs: PassCosts) -> float:
        """Return (S - 1) (forward + backward_input), as GPipe."""
        return (shape.stages - 1) * (costs.forward + costs.backward_input)
