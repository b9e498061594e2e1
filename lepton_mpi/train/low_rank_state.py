"""The factors that PowerSGD starts its next step from, as checkpoint state that fits any grid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.grid import ProcessGrid
from lepton_mpi.nn.parameter import ParameterLayout, ParameterSpec
from lepton_mpi.parallel.extra_state import ExtraState, StateExtent
from lepton_mpi.parallel.powersgd_exchange import keeps_rows


class LowRankState(ExtraState):
    """One array for every weight of several dims: the vectors of its factor, along the rows or along the other dims.

    It does not depend on the grid, since the factor lies along the dim that shards divide. Where a grid does not compress a weight
    the array holds NaN, and who reads that begins with drawn factors.
    """

    def __init__(
        self,
        grid: ProcessGrid,
        layout: ParameterLayout,
        weights: Sequence[ParameterSpec],
        kept: Mapping[str, NDArray[np.float32]],
        rank: int,
    ) -> None:
        """Note where everything lies. Local.

        Args:
            grid: the process grid.
            layout: where parameters lie.
            weights: all weights of the model.
            kept: factors of the weights that are compressed here, float32 [rank, length]; the same on all data ranks.
            rank: vectors of a factor.
        """
        self.group = f"powersgd_rank_{rank}"
        self._rank, self._kept = rank, kept
        self._writes = grid.data_index == 0
        self._shapes = {spec.name: self._of(spec, spec.shape) for spec in weights if len(spec.shape) > 1}
        self._blocks = [block for block in layout.blocks if block.name in self._shapes and block.size]
        self._found = {b.name: np.full(self._of(b.spec, b.shape), np.nan, np.float32) for b in self._blocks}

    def _of(self, spec: ParameterSpec, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (self._rank, shape[0]) if keeps_rows(spec.split_dim) else (self._rank, *shape[1:])

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the global shape of every array. Local."""
        return self._shapes

    @collective("grid.world")
    def extents_to_save(self) -> Sequence[StateExtent]:
        """Return copies of the factors, on the first data rank.

        Collective over grid.world. Nothing is sent.
        """
        if not self._writes:
            return []
        for block in self._blocks:
            kept, found = self._kept.get(block.name), self._found[block.name]
            found[...] = np.nan if kept is None else kept.reshape(found.shape)
        return list(self._extents(primary=True))

    def extents_to_load(self) -> Sequence[StateExtent]:
        """Return the factors of all blocks of this rank. Local."""
        return list(self._extents(primary=False))

    @collective("grid.world")
    def loaded(self, found: bool) -> None:
        """Start from what was loaded; where there was nothing, all stays as it is.

        Collective over grid.world. Nothing is sent.
        """
        for name, kept in self._kept.items():
            if found and np.isfinite(self._found[name]).all():
                kept[...] = self._found[name].reshape(kept.shape)

    def _extents(self, primary: bool) -> Iterator[StateExtent]:
        for block in self._blocks:
            if block.is_primary or not primary:
                starts = (0, block.starts[0]) if keeps_rows(block.spec.split_dim) else (0, *block.starts[1:])
                yield StateExtent(block.name, starts, self._found[block.name])
