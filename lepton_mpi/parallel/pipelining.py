"""How the layers of a model pass through a pipeline: the choices that change no result."""

from __future__ import annotations

from dataclasses import dataclass

from lepton_mpi.parallel.placement import Division


@dataclass(frozen=True)
class Pipelining:
    """The choices.

    Attributes:
        division: which layers are where, see `divide_model`; None: one run of layers a stage, by estimated costs.
        schedule: a name of `SCHEDULES`.
        recompute: whether stages keep only what enters each layer, and run it forward again for its backward pass.
        recompute_stages: which stages do; empty: all.
    """

    division: Division | None = None
    schedule: str = "1f1b"
    recompute: bool = False
    recompute_stages: tuple[int, ...] = ()

    def recomputes(self, stage: int) -> bool:
        """Return whether a stage runs its layers forward again. Local."""
        return self.recompute and (not self.recompute_stages or stage in self.recompute_stages)
