"""What error feedback still owes, as checkpoint state that fits any grid."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.grid import ProcessGrid
from lepton_mpi.parallel.extra_state import RESIDUAL, ExtraState
from lepton_mpi.parallel.node_parameters import NodeParameters
from lepton_mpi.parallel.ownership import part
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.train.summed_state import RowState, SummedState, WeightSlices


@collective("grid.world")
def residual_states(
    grid: ProcessGrid, memory: NodeParameters, shapes: Mapping[str, tuple[int, ...]], residual: NDArray[np.float32]
) -> tuple[ExtraState, ...]:
    """Return a residual as state for checkpoints: its sum over nodes, and a row a node.

    Collective over grid.world. The sum, in units of the summed gradient, is all that matters to later steps but for rounding: each
    part is added to the next gradient wherever it lies.

    A stage with fewer nodes than others leaves rows of zeros, and adds up in its first node what a checkpoint has in them.

    Args:
        grid: the process grid.
        memory: parameters of this rank, which say which slices of buckets it exchanges.
        shapes: global shape of every weight of the model.
        residual: float32, as long as the weights; used at this rank's slices.
    """
    ownership = memory.ownership
    buckets = pairwise(ownership.bounds) if ownership.rank < ownership.num_owners else ()
    extents = [part(bucket, ownership.num_owners, ownership.rank) for bucket in buckets]
    slices = WeightSlices(memory.layout, shapes, extents)
    num_nodes = int(grid.world.allreduce(ownership.num_nodes, op=MPI.MAX))
    spare = range(ownership.num_nodes, num_nodes) if ownership.node == 0 else ()
    return (
        SummedState(RESIDUAL, grid.data_across, grid.is_first_data_node, slices, residual),
        RowState(f"{RESIDUAL}_of_{num_nodes}_nodes", num_nodes, (ownership.node, *spare), slices, residual),
    )
