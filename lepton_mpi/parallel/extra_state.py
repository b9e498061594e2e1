"""State of a run beside parameters and optimizer slots, such as residuals of error feedback, as checkpoints take and give it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.comm.contract import collective

# Group of error-feedback residuals: one array a weight, of its global shape, the sum of what all nodes owe.
RESIDUAL = "residual"


@dataclass(frozen=True, eq=False)
class StateExtent:
    """A block of a named logical array.

    Attributes:
        name: of the array, in its group.
        starts: where the block begins in the array.
        array: float32, the block itself; strided views will do.
    """

    name: str
    starts: tuple[int, ...]
    array: NDArray[np.float32]


class ExtraState(ABC):
    """A group of named float32 arrays that a checkpoint holds as `/<group>/<name>`, whatever grid wrote it.

    Attributes:
        group: first part of the arrays' paths; none of param, opt, normalisation, meta, integrity.
        warns: whether a log should say that a checkpoint has no such group.
    """

    group: str
    warns = True

    @abstractmethod
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the global shape of every array of the group. Local; the same on all ranks."""

    @abstractmethod
    @collective("grid.world")
    def extents_to_save(self) -> Sequence[StateExtent]:
        """Return what this rank writes; over all ranks every element of every array comes exactly once.

        Collective over grid.world, between two steps. Arrays must not change before `NodeParameters.settle` of the next step.
        """

    @abstractmethod
    def extents_to_load(self) -> Sequence[StateExtent]:
        """Return the blocks that this rank wants, whose arrays are then filled. Local."""

    @abstractmethod
    @collective("grid.world")
    def loaded(self, found: bool) -> None:
        """Go on from what was loaded.

        Collective over grid.world, when the arrays of all ranks are filled.

        Args:
            found: whether the checkpoint had the group; if not, arrays are as they were and the state begins anew.
        """
