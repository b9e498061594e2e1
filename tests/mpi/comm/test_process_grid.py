"""The process grid: coordinates, communicators, nodes, and what is given back."""

from __future__ import annotations

import numpy as np
import pytest

from lepton_mpi.comm import grid as grid_module
from lepton_mpi.comm.grid import GridShape, ProcessGrid
from lepton_mpi.errors import GridError
from lepton_mpi.runtime.mpi import MPI


def members(grid: ProcessGrid, comm: MPI.Intracomm) -> list[int]:
    """Return the world ranks of a communicator, in its order."""
    return comm.allgather(grid.rank)


@pytest.mark.mpi
@pytest.mark.parametrize("ranks_per_node", [0, 1, 2])
def test_every_grid_of_these_ranks(comm: MPI.Intracomm, grid_shapes: list[GridShape], ranks_per_node: int) -> None:
    for shape in grid_shapes:
        grid = ProcessGrid(comm, shape, ranks_per_node)
        place = (grid.data_index, grid.stage_index, grid.shard_index)
        numbers = np.arange(comm.size).reshape(shape.data, shape.stages, shape.shards)
        assert numbers[place] == grid.rank == comm.rank == grid.rank_at(*place)
        d, p, h = place
        assert members(grid, grid.world) == list(range(comm.size))
        assert members(grid, grid.data) == numbers[:, p, h].tolist()
        assert members(grid, grid.model) == numbers[d].ravel().tolist()
        assert members(grid, grid.stage) == numbers[d, :, h].tolist()
        assert members(grid, grid.shard) == numbers[d, p].tolist()
        assert (grid.is_first_stage, grid.is_last_stage) == (p == 0, p == shape.stages - 1)
        assert (grid.size, str(shape)) == (comm.size, f"{shape.data} x {shape.stages} x {shape.shards}")

        size = ranks_per_node or comm.size  # all ranks of these tests share a machine
        nodes = np.arange(comm.size) // size
        data_group = numbers[:, p, h]
        here = data_group[nodes[data_group] == nodes[comm.rank]]
        assert (grid.node_index, grid.num_nodes) == (nodes[comm.rank], nodes[-1] + 1)
        assert members(grid, grid.node) == np.flatnonzero(nodes == nodes[comm.rank]).tolist()
        assert members(grid, grid.data_in_node) == here.tolist()
        per_node = [data_group[nodes[data_group] == node] for node in sorted(set(nodes[data_group]))]
        own = here.tolist().index(comm.rank)
        assert members(grid, grid.data_across) == [ranks[own] for ranks in per_node if len(ranks) > own]
        assert grid.num_owners == min(map(len, per_node))
        assert grid.is_first_data_node == (nodes[numbers[0, p, h]] == nodes[comm.rank])
        grid.free()


@pytest.mark.mpi(min_size=3)
def test_nodes_that_do_not_hold_consecutive_ranks(comm: MPI.Intracomm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers stand in node order even where a node's second rank comes before the other node's."""
    homes = [0, 1, 1, 0][: comm.size]
    monkeypatch.setattr(grid_module, "_split_nodes", lambda world, _: world.Split(homes[world.Get_rank()], world.Get_rank()))
    grid = ProcessGrid(comm, GridShape(comm.size, 1, 1))
    assert grid.node_index == homes[comm.rank]
    assert grid.data_across.allgather(grid.node_index) == ([0, 1] if comm.rank in (0, 1) or comm.size == 4 else [1])
    grid.free()


@pytest.mark.mpi
def test_grids_do_not_disturb_each_other_or_the_world(comm: MPI.Intracomm) -> None:
    shape = GridShape(comm.size, 1, 1)
    first, second = ProcessGrid(comm, shape), ProcessGrid(comm, shape)
    right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    everything = [comm, first.world, second.world, first.data, first.model, first.shard, second.data]
    ring = [c for c in everything if c.size == comm.size]
    requests = [c.isend(i, right, tag=0) for i, c in enumerate(ring)]
    for i, c in reversed(list(enumerate(ring))):
        assert c.recv(source=left, tag=0) == i
    MPI.Request.Waitall(requests)
    first.free()
    assert second.world.allreduce(1) == comm.size
    second.free()
    second.free()  # nothing left to give back


@pytest.mark.mpi
def test_many_grids_one_after_the_other(comm: MPI.Intracomm) -> None:
    """Communicators are given back: their number is limited (to some thousands in MPICH)."""
    for _ in range(300):
        ProcessGrid(comm, GridShape(1, 1, comm.size), 1).free()


@pytest.mark.mpi
def test_sizes_that_do_not_fit(comm: MPI.Intracomm) -> None:
    for shape in (GridShape(comm.size, 2, 1), GridShape(comm.size + 1, 1, 1), GridShape(-1, -comm.size, 1)):
        with pytest.raises(GridError, match=r"grid: .* needs .* rank\(s\), received"):
            ProcessGrid(comm, shape)
