"""The parameters of a rank in memory that its node shares: one copy of the weights per node."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_mpi import native
from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.grid import ProcessGrid
from lepton_mpi.comm.node_memory import MemoryPlan, NodeMemory
from lepton_mpi.comm.waiting import wait
from lepton_mpi.nn.parameter import Parameter, ParameterLayout, initial_values
from lepton_mpi.parallel.ownership import Shard, find_ownership
from lepton_mpi.runtime.mpi import MPI
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
        ownership: which rank owns what.
        slots: optimizer state by name, float32 [ownership.num_slot_values], shared; `slot_range` says where a slice lies, and
            each is used by its owner only.
        rank_slots: state by name that this data rank keeps for itself, float32 [layout.statistics_start], see `add_rank_slots`.
        grads: float32 [num_values] of every data rank of the node; the own one at `grid.data_in_node` rank.
        signals: bytes for the counters of the gradient exchange.
        sent_nbytes: bytes of values that this rank has given to other nodes so far, a copy to each.
        device_values, device_grad: the arrays that the layers use: the host arrays themselves on a CPU, copies on a GPU.
        parameters: the parameters as views into the device arrays.
        background_readers: what waits until somebody who reads values and slots in the background, such as a thread that copies
            them for a checkpoint, is done with the state of now; see `settle`.
    """

    @collective("grid.node")
    def __init__(
        self,
        grid: ProcessGrid,
        layouts: Mapping[tuple[int, int], ParameterLayout],
        slot_names: Sequence[str],
        bounds: Mapping[tuple[int, int], Sequence[int]],
        xp: Any,
        shard: Shard = "node",
    ) -> None:
        """Allocate everything, zeroed.

        Collective over grid.node.

        Args:
            grid: the process grid.
            layouts: layout of every (stage, shard) of the grid.
            slot_names: names of the optimizer's arrays.
            bounds: buckets of the gradient exchange of every (stage, shard), see `bucket_bounds`.
            xp: module of the arrays that layers use, numpy or cupy.
            shard: over which ranks optimizer state is divided, see `Ownership`.

        Raises:
            SharedMemoryError: the node has too little shared memory.
        """
        here = (grid.stage_index, grid.shard_index)
        self.layout = layouts[here]
        self.ownership = find_ownership(grid, bounds[here], self.layout.num_values, shard)
        part_of_rank: list[tuple[tuple[int, int], int]] = grid.node.allgather((here, self.ownership.num_slot_values))
        parts = [part for part, _ in part_of_rank]
        plan, groups = MemoryPlan(), {}
        for part, num_slot_values in sorted(set(part_of_rank)):
            num_ranks = parts.count(part)
            nbytes, slot_nbytes = layouts[part].num_values * _FLOAT_NBYTES, num_slot_values * _FLOAT_NBYTES
            signal_nbytes = native.Exchange.signal_nbytes(num_ranks, len(bounds[part]) - 1)
            groups[part] = _GroupPlan(
                values=plan.place(nbytes),
                slots=tuple(plan.place(slot_nbytes) for _ in slot_names),
                signals=plan.place(signal_nbytes),
                signal_nbytes=signal_nbytes,
                grads=tuple(plan.place(nbytes) for _ in range(num_ranks)),
            )
        memory, group = NodeMemory(grid.node, plan.nbytes), groups[here]
        num, num_slot = self.layout.num_values, self.ownership.num_slot_values
        self.values: NDArray[np.float32] = memory.array(group.values, num, np.float32)
        self.slots = {name: memory.array(start, num_slot, np.float32) for name, start in zip(slot_names, group.slots, strict=True)}
        self.grads = [memory.array(start, num, np.float32) for start in group.grads]
        self.signals: NDArray[np.uint8] = memory.array(group.signals, group.signal_nbytes, np.uint8)
        self.rank_slots: dict[str, NDArray[np.float32]] = {}
        self.sent_nbytes = 0
        self.background_readers: list[Callable[[], None]] = []
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

    def add_rank_slots(self, names: Sequence[str]) -> None:
        """Allocate state that this data rank keeps for itself, zeroed. Local."""
        for name in names:
            self.rank_slots[name] = np.zeros(self.layout.statistics_start, np.float32)

    def settle(self) -> None:
        """Wait until nobody on this rank still reads values and slots in the background. Local.

        Every rank calls it before any rank of the node may change them, with a message of all these ranks between the two, since
        ranks read what others own.
        """
        for wait_for_reader in self.background_readers:
            wait_for_reader()

    def zero_grad(self) -> None:
        """Set the own gradient to zero. Local."""
        self.device_grad.fill(0)

    def download_grad(self, start: int, stop: int) -> None:
        """Bring a range of the own gradient to where the neighbours can read it. Local; nothing to do on a CPU."""
        if self._xp is not np:
            self.device_grad[start:stop].get(out=self._own_grad[start:stop])

    def slot_range(self, start: int, stop: int) -> slice:
        """Return where an owned range of the flat buffer lies in the slots. Local."""
        return self.ownership.slot_range(start, stop)

    @collective("grid.data")
    def gather_values(self, grid: ProcessGrid) -> None:
        """Bring the values that other nodes own to this one, exactly; nothing to do where every node owns all.

        Collective over grid.data. Before it nobody on this node may still read the old ones, and after it, each rank has
        those of its own slices only: who reads more must wait for the neighbours.
        """
        if not self.ownership.pieces_differ or self.ownership.rank >= grid.num_owners:
            return
        requests, node = [], self.ownership.node
        for bucket in range(self.ownership.num_buckets):
            pieces = self.ownership.pieces(bucket, self.ownership.rank)
            counts = [stop - start for start, stop in pieces]
            whole = self.values[pieces[0][0] : pieces[-1][1]]  # pieces follow each other, in the order of the nodes
            self.sent_nbytes += counts[node] * _FLOAT_NBYTES * (len(counts) - 1)
            if whole.size:
                requests.append(grid.data_across.Iallgatherv(MPI.IN_PLACE, [whole, counts]))
        for request in requests:
            wait(request, "the updated weights of other nodes")

    def upload(self) -> None:
        """Bring the values to where the layers read them. Local; nothing to do on a CPU."""
        if self._xp is not np:
            self.device_values.set(self.values)
