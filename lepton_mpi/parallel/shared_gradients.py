"""Gradients of parameters that several stages hold, such as an embedding that is the output layer too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.grid import ProcessGrid
from lepton_mpi.comm.waiting import wait
from lepton_mpi.ops.array_module import array_module
from lepton_mpi.parallel.placement import StagePlan
from lepton_mpi.runtime.mpi import MPI

# Above the tags of activations and gradients; every MPI has tags up to 32767 (MPI 4.1, section 9.1.2).
_TAG = 1 << 14


class SharedGradients:
    """Add up the gradients of a parameter over the stages that hold a copy of it.

    Each holder then has the same sum, to the bit, and so the copies stay equal through every update.
    """

    def __init__(self, grid: ProcessGrid, plan: StagePlan, gradients: Sequence[Any]) -> None:
        """Note which parameters are shared with whom. Local.

        Args:
            grid: the process grid.
            plan: what this rank holds.
            gradients: arrays with the gradient of each block of the plan's layout.
        """
        self._stage = grid.stage
        self._shared = [(gradients[index], stages) for index, stages in plan.shared]

    @collective("grid.stage")
    def add_up(self) -> None:
        """Replace the gradients by their sums over the stages, in the order of the stages.

        Collective over grid.stage, after the backward pass.
        """
        own = self._stage.Get_rank()
        for number, (gradient, stages) in enumerate(self._shared):
            xp = array_module(gradient)
            mine = np.ascontiguousarray(gradient if xp is np else xp.asnumpy(gradient))
            parts: dict[int, NDArray[Any]] = {own: mine}
            requests: list[MPI.Request] = []
            for stage in stages:
                if stage != own:
                    parts[stage] = np.empty_like(mine)
                    requests.append(self._stage.Irecv(parts[stage], stage, _TAG + number))
                    requests.append(self._stage.Isend(mine, stage, _TAG + number))
            for request in requests:
                wait(request, "the gradient of a shared parameter")
            total = parts[stages[0]].copy()
            for stage in stages[1:]:
                total += parts[stage]
            gradient[...] = xp.asarray(total)
