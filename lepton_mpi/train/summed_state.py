"""State of which only the sum over ranks matters, such as what error feedback owes, as checkpoints that fit any grid hold it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.checkpoint.layout import cut_run
from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.reduction import sum_in_rank_order
from lepton_mpi.nn.parameter import ParameterLayout
from lepton_mpi.parallel.extra_state import ExtraState, StateExtent
from lepton_mpi.parallel.ownership import Extent
from lepton_mpi.runtime.mpi import MPI

# Values that are added up at once, which bounds the memory that it takes.
_SUM_VALUES = 1 << 22


class WeightSlices:
    """Slices of the flat buffer of weights that a rank keeps state for, as blocks of the logical arrays.

    Attributes:
        extents: start and stop of each slice.
        shapes: global shape of every weight of the model, by name.
    """

    def __init__(self, layout: ParameterLayout, shapes: Mapping[str, tuple[int, ...]], extents: Sequence[Extent]) -> None:
        """Note where everything lies. Local."""
        self._layout, self.shapes, self.extents = layout, dict(shapes), list(extents)

    def of(self, values: NDArray[np.float32], primary: bool) -> Iterator[StateExtent]:
        """Yield the slices of a flat array of weights as blocks of the logical arrays.

        Args:
            values: float32, as long as the weights.
            primary: leave out the blocks that another shard or stage answers for.
        """
        for block, offset in zip(self._layout.blocks, self._layout.offsets, strict=True):
            if block.name not in self.shapes or (primary and not block.is_primary):
                continue
            for low, high in self.extents:
                position = max(low, offset)
                for inner, shape in cut_run(block.shape, position - offset, min(high, offset + block.size) - offset):
                    size = math.prod(shape)
                    starts = tuple(outer + start for outer, start in zip(block.starts, inner, strict=True))
                    yield StateExtent(block.name, starts, values[position : position + size].reshape(shape))
                    position += size


class SummedState(ExtraState):
    """The sum over the ranks of what each keeps, one array a weight.

    It is one array whatever the number of ranks, and is loaded into the first of them.
    """

    def __init__(self, group: str, holders: MPI.Intracomm, first: bool, slices: WeightSlices, kept: NDArray[np.float32]) -> None:
        """Note where everything lies. Local.

        Args:
            group: see `ExtraState`.
            holders: ranks that keep state for the same slices.
            first: whether this is the one of them that writes and loads the sum.
            slices: what this rank keeps state for.
            kept: float32, as long as the weights, used at the slices.
        """
        self.group = group
        self._holders, self._first, self._slices, self._kept = holders, first, slices, kept
        self._found = np.zeros(kept.shape, np.float32)  # takes memory only once it is written to

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the global shape of every weight. Local."""
        return self._slices.shapes

    @collective("grid.world")
    def extents_to_save(self) -> Sequence[StateExtent]:
        """Return the sums of this rank's slices, on the first holder.

        Collective over grid.world.
        """
        for low, high in self._slices.extents:
            for start in range(low, high, _SUM_VALUES):
                stop = min(start + _SUM_VALUES, high)
                total = sum_in_rank_order(self._holders, self._kept[start:stop])
                if self._first:
                    self._found[start:stop] = total
        return list(self._slices.of(self._found, primary=True)) if self._first else []

    def extents_to_load(self) -> Sequence[StateExtent]:
        """Return this rank's slices, on the first holder. Local."""
        return list(self._slices.of(self._found, primary=False)) if self._first else []

    @collective("grid.world")
    def loaded(self, found: bool) -> None:
        """Keep what was loaded; nothing, if the checkpoint had none.

        Collective over grid.world. Nothing is sent.
        """
        self._kept.fill(0)
        if found and self._first:
            for start, stop in self._slices.extents:
                self._kept[start:stop] = self._found[start:stop]


class RowState(ExtraState):
    """What every rank keeps by itself, one array a weight with a row for each of them.

    With as many of them a run continues from it to the bit, which the sum alone does not allow: a sum of parts rounds as the parts
    lie. It follows the `SummedState`, and replaces what that has loaded.
    """

    warns = False  # the sum is there

    def __init__(self, group: str, num_rows: int, rows: Sequence[int], slices: WeightSlices, kept: NDArray[np.float32]) -> None:
        """Note where everything lies. Local.

        Args:
            group: see `ExtraState`; it names the number of rows.
            num_rows: rows of every array.
            rows: that of this rank, then those that nobody has, which it writes as zeros and of which it takes what it loads.
            slices: what this rank keeps state for.
            kept: float32, as long as the weights, used at the slices.
        """
        self.group = group
        self._shapes = {name: (num_rows, *shape) for name, shape in slices.shapes.items()}
        self._rows, self._slices, self._kept = tuple(rows), slices, kept
        self._found = [np.zeros(kept.shape, np.float32) for _ in self._rows]

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the global shape of every array: the rows, then that of the weight. Local."""
        return self._shapes

    @collective("grid.world")
    def extents_to_save(self) -> Sequence[StateExtent]:
        """Return this rank's slices in its row.

        Collective over grid.world. Nothing is sent.
        """
        # A copy, since the next step changes this state before its update, when a save may still read what it was given.
        own, *spare = self._found
        for start, stop in self._slices.extents:
            own[start:stop] = self._kept[start:stop]
            for zeros in spare:
                zeros[start:stop] = 0
        return list(self._extents(primary=True))

    def extents_to_load(self) -> Sequence[StateExtent]:
        """Return this rank's slices in its row. Local."""
        return list(self._extents(primary=False))

    @collective("grid.world")
    def loaded(self, found: bool) -> None:
        """Keep what was loaded; if the checkpoint has nothing of so many ranks, all stays as it is.

        Collective over grid.world. Nothing is sent.
        """
        if found:
            own, *others = self._found
            for start, stop in self._slices.extents:
                self._kept[start:stop] = own[start:stop]
                for other in others:
                    self._kept[start:stop] += other[start:stop]

    def _extents(self, primary: bool) -> Iterator[StateExtent]:
        for row, values in zip(self._rows, self._found, strict=True):
            for extent in self._slices.of(values, primary):
                yield StateExtent(extent.name, (row, *extent.starts), extent.array[None])
