"""The sizes of gradients that scale what codecs send, as checkpoint state."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from lepton_mpi.checkpoint.layout import cut_run
from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.grid import ProcessGrid
from lepton_mpi.nn.parameter import ParameterLayout
from lepton_mpi.parallel.extra_state import ExtraState, StateExtent
from lepton_mpi.parallel.ownership import Ownership
from lepton_mpi.parallel.value_scales import ValueScales


class ValueScaleState(ExtraState):
    """The mean squares of the gradients of all values, one array a weight; scales follow from them."""

    group = "gradient_squares"

    def __init__(
        self,
        grid: ProcessGrid,
        layout: ParameterLayout,
        ownership: Ownership,
        shapes: Mapping[str, tuple[int, ...]],
        scales: ValueScales,
    ) -> None:
        """Note where everything lies. Local.

        Args:
            grid: the process grid.
            layout: where parameters lie.
            ownership: which slices of buckets this rank owns.
            shapes: global shape of every weight of the model.
            scales: has the squares.
        """
        self._layout, self._shapes, self._scales = layout, dict(shapes), scales
        self._writes = ownership.pieces_differ or grid.is_first_data_node

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the global shape of every weight. Local."""
        return self._shapes

    @collective("grid.world")
    def extents_to_save(self) -> Sequence[StateExtent]:
        """Return what this rank has learned of the values it owns, where no other node answers for them.

        Collective over grid.world. Nothing is sent. The next step learns only after its sums are complete.
        """
        return [
            StateExtent(extent.name, extent.starts, extent.array.copy())
            for extent in (self._extents(primary=True) if self._writes else ())
        ]

    def extents_to_load(self) -> Sequence[StateExtent]:
        """Return the values that this rank owns. Local."""
        return list(self._extents(primary=False))

    @collective("grid.world")
    def loaded(self, found: bool) -> None:
        """Find the scales anew; without squares in the checkpoint they are learned from here, or are all 1 after the warm-up.

        Collective over grid.world. Nothing is sent.
        """
        if not found:
            self._scales.squares.fill(0)
        self._scales.forget_scales()

    def _extents(self, primary: bool) -> Iterator[StateExtent]:
        for block, offset in zip(self._layout.blocks, self._layout.offsets, strict=True):
            if block.name not in self._shapes or (primary and not block.is_primary):
                continue
            for low, high in self._scales.owned:
                position = max(low, offset)
                for inner, shape in cut_run(block.shape, position - offset, min(high, offset + block.size) - offset):
                    size = math.prod(shape)
                    starts = tuple(outer + start for outer, start in zip(block.starts, inner, strict=True))
                    yield StateExtent(block.name, starts, self._scales.squares[position : position + size].reshape(shape))
                    position += size
