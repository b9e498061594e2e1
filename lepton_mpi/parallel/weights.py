"""Whole parameters out of their blocks, and the hash that no grid changes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.grid import ProcessGrid
from lepton_mpi.nn.parameter import ParameterBlock, ParameterLayout
from lepton_mpi.parallel.node_parameters import NodeParameters


class WeightGatherer:
    """Bring whole parameters to rank 0, one at a time."""

    def __init__(self, grid: ProcessGrid, memory: NodeParameters, layouts: Mapping[tuple[int, int], ParameterLayout]) -> None:
        """Find out who holds what. Local.

        Args:
            grid: the process grid.
            memory: parameters of this rank.
            layouts: layout of every (stage, shard) of the grid.
        """
        self._grid = grid
        self._memory = memory
        self._holders: dict[str, list[tuple[int, int, ParameterBlock]]] = {}
        for (stage, shard), layout in sorted(layouts.items()):
            for index, block in enumerate(layout.blocks):
                if block.is_primary:
                    place = (grid.rank_at(0, stage, shard), index, block)
                    self._holders.setdefault(block.name, []).append(place)

    @property
    def names(self) -> list[str]:
        """Names of all parameters, sorted."""
        return sorted(self._holders)

    @collective("grid.world")
    def gather(self, name: str) -> NDArray[np.float32] | None:
        """Return a whole parameter on rank 0, None elsewhere.

        Collective over grid.world.
        """
        holders = self._holders[name]
        rank = self._grid.rank
        whole = np.empty(holders[0][2].spec.shape, np.float32) if rank == 0 else None
        for holder, index, block in holders:
            values = self._memory.layout.view(index, self._memory.values) if holder == rank else None
            if holder == rank != 0:
                self._grid.world.Send(np.ascontiguousarray(values), 0)
            if whole is None:
                continue
            if values is None:
                values = np.empty(block.shape, np.float32)
                self._grid.world.Recv(values, holder)
            whole[tuple(slice(s, s + n) for s, n in zip(block.starts, block.shape, strict=True))] = values
        return whole

    @collective("grid.world")
    def sha256(self) -> str:
        """Return the SHA-256 of all parameters on every rank.

        Collective over grid.world. Hashed are the little-endian fp32 values in C order, parameters in the order
        of their sorted names, so the result does not depend on the grid.
        """
        digest = hashlib.sha256()
        for name in self.names:
            whole = self.gather(name)
            if whole is not None:
                digest.update(np.ascontiguousarray(whole, "<f4").data)
        text: str = self._grid.world.bcast(digest.hexdigest(), root=0)
        return text
