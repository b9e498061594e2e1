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
from lepton_mpi.runtime.mpi import MPI


class _Slices:
    """Where in the weights of the model the slices lie that this rank exchanges."""

    def __init__(self, layout: ParameterLayout, ownership: Ownership, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._layout, self._shapes = layout, shapes
        owns = ownership.rank < ownership.num_owners
        bounds = zip(ownership.bounds, ownership.bounds[1:], strict=False)
        self.extents = [part(bucket, ownership.num_owners, ownership.rank) for bucket in bounds] if owns else []

    def of(self, values: NDArray[np.float32], primary: bool) -> Iterator[StateExtent]:
        """Yield the slices of a flat array of weights as blocks of the logical arrays.

        Args:
            values: float32, as long as the weights.
            primary: leave out the blocks that another shard or stage answers for.
        """
        for block, offset in zip(self._layout.blocks, self._layout.offsets, strict=True):
            if block.name not in self._shapes or (primary and not block.is_primary):
                continue
            for low, high in self.extents:
                position = max(low, offset)
                for inner, shape in cut_run(block.shape, position - offset, min(high, offset + block.size) - offset):
                    size = math.prod(shape)
                    starts = tuple(outer + start for outer, start in zip(block.starts, inner, strict=True))
                    yield StateExtent(block.name, starts, values[position : position + size].reshape(shape))
                    position += size


class ResidualState(ExtraState):
    """The sum over nodes of what was not sent yet, one array a weight.

    That sum, in units of the summed gradient, is all that matters to later steps but for rounding: each part is added to the next
    gradient wherever it lies. So it is one array whatever the number of nodes, and is loaded into the first node.
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
        self._grid, self._shapes = grid, dict(shapes)
        self._residual = residual
        self._found = np.zeros_like(residual)
        self._slices = _Slices(layout, ownership, self._shapes)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the global shape of every weight. Local."""
        return self._shapes

    @collective("grid.world")
    def extents_to_save(self) -> Sequence[StateExtent]:
        """Return the sums of this rank's slices over all nodes, on the first node.

        Collective over grid.world.
        """
        for start, stop in self._slices.extents:
            self._found[start:stop] = sum_in_rank_order(self._grid.data_across, self._residual[start:stop])
        return list(self._slices.of(self._found, primary=True)) if self._grid.is_first_data_node else []

    def extents_to_load(self) -> Sequence[StateExtent]:
        """Return this rank's slices, on the first node. Local."""
        return list(self._slices.of(self._found, primary=False)) if self._grid.is_first_data_node else []

    @collective("grid.world")
    def loaded(self, found: bool) -> None:
        """Owe what was loaded; nothing, if the checkpoint had none.

        Collective over grid.world. Nothing is sent.
        """
        self._residual.fill(0)
        if found and self._grid.is_first_data_node:
            for start, stop in self._slices.extents:
                self._residual[start:stop] = self._found[start:stop]


class NodeResidualState(ExtraState):
    """What every node owes by itself, one array a weight with a row for each node.

    On a grid with as many nodes a run continues from it to the bit, which the sum alone does not allow: a sum of parts rounds
    as the parts lie. It follows `ResidualState`, and replaces what that has loaded. A stage with fewer nodes than others leaves
    rows of zeros, and adds up in its first node what a checkpoint has in them.
    """

    warns = False  # the sum is there

    @collective("grid.world")
    def __init__(
        self,
        grid: ProcessGrid,
        layout: ParameterLayout,
        ownership: Ownership,
        shapes: Mapping[str, tuple[int, ...]],
        residual: NDArray[np.float32],
    ) -> None:
        """Note where everything lies.

        Collective over grid.world.

        Args:
            grid, layout, ownership, shapes, residual: see `ResidualState`.
        """
        num_nodes = int(grid.world.allreduce(ownership.num_nodes, op=MPI.MAX))
        self.group = f"{RESIDUAL}_of_{num_nodes}_nodes"
        self._shapes = {name: (num_nodes, *shape) for name, shape in shapes.items()}
        self._residual = residual
        self._slices = _Slices(layout, ownership, shapes)
        spare = range(ownership.num_nodes, num_nodes) if ownership.node == 0 else ()
        self._rows = (ownership.node, *spare)
        self._found = [np.zeros_like(residual) for _ in self._rows]

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the global shape of every array: the nodes, then that of the weight. Local."""
        return self._shapes

    @collective("grid.world")
    def extents_to_save(self) -> Sequence[StateExtent]:
        """Return this rank's slices in the row of its node.

        Collective over grid.world. Nothing is sent.
        """
        # A copy, since the next step changes residuals before its update, when a save may still read what it was given.
        own, *spare = self._found
        for start, stop in self._slices.extents:
            own[start:stop] = self._residual[start:stop]
            for zeros in spare:
                zeros[start:stop] = 0
        return list(self._extents(self._found, primary=True))

    def extents_to_load(self) -> Sequence[StateExtent]:
        """Return this rank's slices in the row of its node. Local."""
        return list(self._extents(self._found, primary=False))

    @collective("grid.world")
    def loaded(self, found: bool) -> None:
        """Owe what was loaded; if the checkpoint has nothing of so many nodes, all stays as it is.

        Collective over grid.world. Nothing is sent.
        """
        if found:
            own, *others = self._found
            for start, stop in self._slices.extents:
                self._residual[start:stop] = own[start:stop]
                for other in others:
                    self._residual[start:stop] += other[start:stop]

    def _extents(self, rows: Sequence[NDArray[np.float32]], primary: bool) -> Iterator[StateExtent]:
        for row, values in zip(self._rows, rows, strict=True):
            for extent in self._slices.of(values, primary):
                yield StateExtent(extent.name, (row, *extent.starts), extent.array[None])
