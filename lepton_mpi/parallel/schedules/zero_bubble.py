"""ZB-H1: the weights' half of the backward pass fills what 1F1B leaves idle, in the memory of 1F1B.

Qi et al. 2023, "Zero bubble pipeline parallelism", section 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from lepton_mpi.parallel.schedules.schedule import Action, Kind, PassCosts, PipelineShape, Schedule


@final
class ZeroBubble(Schedule):
    """As 1F1B, but stage s works on the weights of micro-batch m only after the input gradient of micro-batch m + s."""

    def order(self, stage: int, shape: PipelineShape) -> Iterator[Action]:
        """Yield the passes; later stages postpone more, since the stages before wait for their input gradients."""
        num = shape.micro_batches
        warm_up = min(shape.stages - 1 - stage, num)
        for m in range(warm_up):
            yield Action(Kind.FORWARD, m)
        for m in range(num):
            if warm_up + m < num:
                yield Action(Kind.FORWARD, warm_up + m)
            yield Action(Kind.BACKWARD_INPUT, m)
            if m >= stage:
                yield Action(Kind.BACKWARD_WEIGHT, m - stage)
        for m in range(max(num - stage, 0), num):
            yield Action(Kind.BACKWARD_WEIGHT, m)

    def peak_in_flight(self, stage: int, shape: PipelineShape) -> int:
        """Return min(S, M) on every stage, what 1F1B holds on its first."""
        return min(shape.stages, shape.micro_batches)

    def idle(self, shape: PipelineShape, costs: PassCosts) -> float:
        """Return (S - 1) (forward + backward_input) - min(S, M) - 1 times the cheapest pass.

        With M >= S and weights' halves that are the cheapest this is (S - 1) (forward + backward_input - backward_weight), the
        bubble that the paper gives in table 2.
        """
        cheapest = min(costs.forward, costs.backward_input, costs.backward_weight)
        whole = (shape.stages - 1) * (costs.forward + costs.backward_input)
        return whole - (min(shape.stages, shape.micro_batches) - 1) * cheapest
