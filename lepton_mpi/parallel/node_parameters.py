"""The parameters of a rank in memory that its node shares: one copy of the weights per node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_mpi import native
from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.grid import ProcessGrid
from lepton_mpi.comm.node_memory import MemoryPlan, NodeMemory
from lepton_mpi.nn.parameter import Parameter, ParameterLayout, initial_values
from lepton_mpi.runtime.ranges import split_range

_FLOAT_NBYTES = 4


@dataclass(frozen=True)
class _GroupPlan:
    """Where the arrays of one model part lie in the node's segment, in bytes."""

    values: int
    slots: tuple[int, ...]
    signals: int
    signal_nbytes: int
    grads: tuple[int, ...]


class NodeParameters:
    """Values, optimizer slots and gradients of this rank's model part.

    The data-parallel ranks of a node share one array of values and one of each optimizer slot, and
    can read each other's gradients.

    Attributes:
        layout: where parameters lie in the flat buffers.
        values: float32 [num_values], shared; slices are written by their owners between the
            gradient exchange and `publish`, and only read at all other times.
        slots: optimizer state by name, like `values`, each slice used by its owner only.
        grads: float32 [num_values] of every data rank of the node; the own one at `grid.data_in_node` rank.
        signals: bytes for the counters of the gradient exchange.
        device_values, device_grad: the arrays that the layers use: the host arrays themselves on a CPU, copies on a GPU.
        parameters: the parameters as views into the device arrays.
    """

    @collective("grid.node")
    def __init__(
        self,
        grid: ProcessGrid,
        layouts: Mapping[tuple[int, int], ParameterLayout],
        slot_names: Sequence[str],
        num_buckets: Mapping[tuple[int, int], int],
        xp: Any,
    ) -> None:
        """Allocate everything, zeroed.

        Collective over grid.node.

        Args:
            grid: the process grid.
            layouts: layout of every (stage, shard) of the grid.
            slot_names: names of the optimizer's arrays.
            num_buckets: buckets of the gradient exchange of every (stage, shard).
            xp: module of the arrays that layers use, numpy or cupy.

        Raises:
            SharedMemoryError: the node has too little shared memory.
        """
        here = (grid.stage_index, grid.shard_index)
        part_of_rank: list[tuple[int, int]] = grid.node.allgather(here)
        plan, groups = MemoryPlan(), {}
        for part in sorted(set(part_of_rank)):
            num_ranks = part_of_rank.count(part)
            nbytes = layouts[part].num_values * _FLOAT_NBYTES
            signal_nbytes = native.Exchange.signal_nbytes(num_ranks, num_buckets[part])
            groups[part] = _GroupPlan(
                values=plan.place(nbytes),
                slots=tuple(plan.place(nbytes) for _ in slot_names),
                signals=plan.place(signal_nbytes),
                signal_nbytes=signal_nbytes,
                grads=tuple(plan.place(nbytes) for _ in range(num_ranks)),
            )
        memory, group = NodeMemory(grid.node, plan.nbytes), groups[here]
        self.layout = layouts[here]
        num = self.layout.num_values
        self.values: NDArray[np.float32] = memory.array(group.values, num, np.float32)
        self.slots = {name: memory.array(start, num, np.float32) for name, start in zip(slot_names, group.slots, strict=True)}
        self.grads = [memory.array(start, num, np.float32) for start in group.grads]
        self.signals: NDArray[np.uint8] = memory.array(group.signals, group.signal_nbytes, np.uint8)
        self._xp = xp
        own_grad = self.grads[grid.data_in_node.Get_rank()]
        self.device_values: Any = self.values if xp is np else xp.zeros(num, xp.float32)
        self.device_grad: Any = own_grad if xp is np else xp.zeros(num, xp.float32)
        self._own_grad = own_grad
        self.parameters: tuple[Parameter, ...] = self.layout.parameters(self.device_values, self.device_grad)

    @collective("grid.node")
    def initialise(self, grid: ProcessGrid, seed: int) -> None:
        """Draw the initial weights, each data rank of the node some rows of every parameter.

        Collective over grid.node.
        """
        parts, index = grid.data_in_node.Get_size(), grid.data_in_node.Get_rank()
        for i, block in enumerate(self.layout.blocks):
            first, last = split_range(block.shape[0], parts, index)
            self.layout.view(i, self.values)[first:last] = initial_values(block, seed, (first, last))
        grid.node.Barrier()
        self.upload()

    def zero_grad(self) -> None:
        """Set the own gradient to zero. Local."""
        self.device_grad.fill(0)

    def download_grad(self, start: int, stop: int) -> None:
        """Bring a range of the own gradient to where the neighbours can read it. Local; nothing to do on a CPU."""
        if self._xp is not np:
            self.device_grad[start:stop].get(out=self._own_grad[start:stop])

    def upload(self) -> None:
        """Bring the values to where the layers read them. Local; nothing to do on a CPU."""
        if self._xp is not np:
            self.device_values.set(self.values)
