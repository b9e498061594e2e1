"""Forward only: what an evaluation does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from lepton_mpi.parallel.schedules.interleaved import chunk_order
from lepton_mpi.parallel.schedules.schedule import Action, Kind, PassCosts, PipelineShape, Schedule


@final
class ForwardOnly(Schedule):
    """Every micro-batch forward, in order; with several chunks in groups, as `Interleaved`. Nothing is kept."""

    def order(self, stage: int, shape: PipelineShape) -> Iterator[Action]:
        """Yield the forward passes."""
        for m, c in chunk_order(shape):
            yield Action(Kind.FORWARD, m, c)

    def peak_in_flight(self, stage: int, shape: PipelineShape) -> int:
        """Return 0: no backward pass will ask for anything."""
        return 0

    def idle(self, shape: PipelineShape, costs: PassCosts) -> float:
        """Return (S - 1) forward, and with M < S another (S - M) forward for each further chunk."""
        around = (shape.chunks - 1) * max(shape.stages - shape.micro_batches, 0) if shape.micro_batches else 0
        return (shape.stages - 1 + around) * costs.forward

    def bubble(self, shape: PipelineShape, costs: PassCosts) -> float:
        """Return the idle share of a pass."""
        idle = self.idle(shape, costs)
        return idle / (idle + shape.micro_batches * shape.chunks * costs.forward)
