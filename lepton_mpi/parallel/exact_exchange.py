"""The sum of gradients over the data axis, exactly, from totals; takes the place of `GradientExchange` in reproducible runs."""

from __future__ import annotations

import numpy as np

from lepton_mpi import native
from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.grid import ProcessGrid
from lepton_mpi.comm.waiting import wait
from lepton_mpi.parallel.exchange import Exchange, cut_slices, sum_statistics
from lepton_mpi.parallel.gradient_totals import GradientTotals, GradientUnits
from lepton_mpi.parallel.node_parameters import NodeParameters
from lepton_mpi.parallel.ownership import part
from lepton_mpi.runtime.mpi import MPI


class ExactExchange(Exchange):
    """Add up the totals over grid.data: directly in shared memory inside a node, by MPI between nodes, in any order."""

    @collective("grid.data")
    def __init__(self, grid: ProcessGrid, memory: NodeParameters, totals: GradientTotals) -> None:
        """Set the exchange up.

        Collective over grid.data.

        Args:
            grid: the process grid.
            memory: parameters of this rank, which say what it owns.
            totals: what is added up.
        """
        self._grid, self._memory, self._totals = grid, memory, totals
        ownership, rank = memory.ownership, grid.data_in_node.Get_rank()
        owns = rank < ownership.num_owners
        bounds = zip(ownership.bounds, ownership.bounds[1:], strict=False)
        slices = [part(bucket, ownership.num_owners, rank) for bucket in bounds] if owns else []
        self._slices = [slice(start, stop) for start, stop in slices if start < stop]
        self._between_nodes = owns and grid.data_across.Get_size() > 1
        self._own_grad = memory.grads[rank]
        self._sent_nbytes = 0
        self.owned_slices = cut_slices(memory.layout, ownership, grid.is_first_data_node)
        self.extra_states = (GradientUnits(totals, grid.rank == 0),)

    @collective("grid.data")
    def begin_step(self, step: int) -> None:
        """Do nothing: all steps are alike. Collective over grid.data. Nothing is sent."""

    def start_from(self, offset: int) -> None:
        """Do nothing: totals are added when all are complete. Local."""

    @collective("grid.data")
    def finish(self) -> None:
        """Wait until the reduced gradients of the owned slices lie in the own gradient buffer. Totals are zero then.

        Collective over grid.data.
        """
        wait(self._grid.data_in_node.Ibarrier(), "the gradients of the ranks of this node")
        for here in self._slices:
            parts = [totals[here] for totals in self._totals.arrays]
            if not self._between_nodes:
                native.collect_totals(parts, self._own_grad[here])
                continue
            sums = np.empty(here.stop - here.start)
            native.collect_totals(parts, sums)
            wait(self._grid.data_across.Iallreduce(MPI.IN_PLACE, sums, MPI.SUM), "the gradients of other nodes")
            self._sent_nbytes += sums.nbytes
            self._own_grad[here] = sums
        # Only the first data rank's layers change running statistics, so this sum is exact too.
        sum_statistics(self._grid, self._memory)

    @collective("grid.data")
    def publish(self) -> None:
        """Make updated values visible to all ranks, and wait for theirs.

        Collective over grid.data.
        """
        self._memory.gather_values(self._grid)
        wait(self._grid.data_in_node.Ibarrier(), "the updates of the ranks of this node")
        self._memory.upload()

    @property
    def sent_nbytes(self) -> int:
        """Bytes that this rank has handed to sums over nodes so far, and to gathers of values."""
        return self._sent_nbytes + self._memory.sent_nbytes

    @collective("grid.data")
    def free(self) -> None:
        """Do nothing: there is no communicator of its own.

        Collective over grid.data.
        """
