"""What error feedback still owes, as checkpoint state that fits any grid."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.checkpoint.layout import cut_run
from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.grid import ProcessGrid
from lepton_mpi.comm.reduction import sum_in_rank_order
from lepton_mpi.nn.parameter import ParameterLayout
from lepton_mpi.parallel.extra_state import RESIDUAL, ExtraState, StateExtent
from lepton_mpi.parallel.ownership import Ownership, part


class ResidualState(ExtraState):
    """The sum over nodes of what was not sent yet, one array a weight.

    That sum, in units of the summed gradient, is all that matters to later steps: each part is added to the next gradient
    wherever it lies. So it is one array whatever the number of nodes, and is loaded into the first node.
    """

    group = RESIDUAL

    def __init__(
        self,
        grid: ProcessGrid,
        layout: ParameterLayout,
        ownership: Ownership,
        shapes: Mapping[str, tuple[int, ...]],
        residual: NDArray[np.float32],
    ) -> None:
        """Note where everything lies. Local.

        Args:
            grid: the process grid.
            layout: where parameters lie.
            ownership: which slices of buckets this rank exchanges.
            shapes: global shape of every weight of the model.
            residual: float32, as long as the weights; used at this rank's slices.
        """
        self._grid, self._layout, self._shapes = grid, layout, dict(shapes)
        self._residual = residual
        self._found = np.zeros_like(residual)
        owns = ownership.rank < ownership.num_owners
        bounds = zip(ownership.bounds, ownership.bounds[1:], strict=False)
        self._slices = [part(bucket, ownership.num_owners, ownership.rank) for bucket in bounds] if owns else []

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the global shape of every weight. Local."""
        return self._shapes

    @collective("grid.world")
    def extents_to_save(self) -> Sequence[StateExtent]:
        """Return the sums of this rank's slices over all nodes, on the first node.

        Collective over grid.world.
        """
        for start, stop in self._slices:
            self._found[start:stop] = sum_in_rank_order(self._grid.data_across, self._residual[start:stop])
        return list(self._extents(True)) if self._grid.is_first_data_node else []

    def extents_to_load(self) -> Sequence[StateExtent]:
        """Return this rank's slices, on the first node. Local."""
        return list(self._extents(False)) if self._grid.is_first_data_node else []

    @collective("grid.world")
    def loaded(self, found: bool) -> None:
        """Owe what was loaded; nothing, if the checkpoint had none.

        Collective over grid.world. Nothing is sent.
        """
        self._residual.fill(0)
        if found and self._grid.is_first_data_node:
            for start, stop in self._slices:
                self._residual[start:stop] = self._found[start:stop]

    def _extents(self, primary: bool) -> Iterator[StateExtent]:
        for block, offset in zip(self._layout.blocks, self._layout.offsets, strict=True):
            if block.name not in self._shapes or (primary and not block.is_primary):
                continue
            for low, high in self._slices:
                position = max(low, offset)
                for inner, shape in cut_run(block.shape, position - offset, min(high, offset + block.size) - offset):
                    size = math.prod(shape)
                    starts = tuple(outer + start for outer, start in zip(block.starts, inner, strict=True))
                    yield StateExtent(block.name, starts, self._found[position : position + size].reshape(shape))
                    position += size
