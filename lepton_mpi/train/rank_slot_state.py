"""What optimizers keep on every data rank by itself, such as its own momentum, as checkpoint state that fits any grid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lepton_mpi.comm.grid import ProcessGrid
from lepton_mpi.parallel.extra_state import ExtraState
from lepton_mpi.parallel.node_parameters import NodeParameters
from lepton_mpi.train.summed_state import RowState, SummedState, WeightSlices


def rank_slot_states(grid: ProcessGrid, memory: NodeParameters, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[ExtraState]:
    """Yield the slots of this rank alone as state for checkpoints: the sum over data ranks, and a row a data rank. Local.

    The update takes the sum of what the ranks send, so that the sum of the slots is all that matters to later steps but for
    rounding, and for what a codec makes of each rank's part. One rank's sum is its row.

    Args:
        grid: the process grid.
        memory: has the slots.
        shapes: global shape of every weight of the model.
    """
    slices = WeightSlices(memory.layout, shapes, [(0, memory.layout.statistics_start)])
    num_ranks = grid.shape.data
    for name, slot in memory.rank_slots.items():
        yield SummedState(name, grid.data, grid.data_index == 0, slices, slot)
        if num_ranks > 1:
            yield RowState(f"{name}_of_{num_ranks}_ranks", num_ranks, (grid.data_index,), slices, slot)
