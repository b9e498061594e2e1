"""GPipe: all micro-batches forward, then all backward.

Huang et al. 2019, "GPipe: efficient training of giant neural networks using pipeline parallelism".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from lepton_mpi.parallel.schedules.schedule import Action, Kind, PassCosts, PipelineShape, Schedule, backward


@final
class GPipe(Schedule):
    """All forward, then all backward: the fewest changes between the two, and the most memory."""

    def order(self, stage: int, shape: PipelineShape) -> Iterator[Action]:
        """Yield all forward passes, then all backward ones, both in the order of the micro-batches."""
        for m in range(shape.micro_batches):
            yield Action(Kind.FORWARD, m)
        for m in range(shape.micro_batches):
            yield from backward(m)

    def peak_in_flight(self, stage: int, shape: PipelineShape) -> int:
        """Return M."""
        return shape.micro_batches

    def idle(self, shape: PipelineShape, costs: PassCosts) -> float:
        """Return (S - 1) (forward + backward_input).

        With a backward pass that is sent on only as a whole it would be (S - 1) (forward + backward), as in the paper.
        """
        return (shape.stages - 1) * (costs.forward + costs.backward_input)
