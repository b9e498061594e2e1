"""Which slices the ranks own, and when buckets start."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from small_models import mlp

from lepton_mpi.comm.grid import GridShape, ProcessGrid
from lepton_mpi.errors import StallError
from lepton_mpi.parallel.exchange_reference import exchange_reference
from lepton_mpi.parallel.gradient_exchange import GradientExchange, bucket_bounds
from lepton_mpi.parallel.node_parameters import NodeParameters
from lepton_mpi.parallel.ownership import BLOCK_VALUES, Shard
from lepton_mpi.parallel.placement import plan_stage
from lepton_mpi.runtime.mpi import MPI

MODEL = mlp(20, (30, 40, 18), 6)


class Exchanging:
    """One rank's parameters with their exchange."""

    def __init__(
        self, grid: ProcessGrid, mode: str = "exact", timeout_s: float = 60.0, bucket_mib: float = 0.001, shard: Shard = "node"
    ) -> None:
        shape = grid.shape
        places = [(stage, shard) for stage in range(shape.stages) for shard in range(shape.shards)]
        layouts = {p: plan_stage(MODEL, shape.stages, shape.shards, *p).layout for p in places}
        bounds = {p: bucket_bounds(layout.num_values, bucket_mib) for p, layout in layouts.items()}
        self.grid, self.bounds = grid, bounds[(grid.stage_index, grid.shard_index)]
        self.memory = NodeParameters(grid, layouts, ["momentum"], bounds, np, shard)
        self.exchange = GradientExchange(grid, self.memory, mode, timeout_s, spin=False)

    def free(self) -> None:
        self.exchange.free()
        self.grid.free()


@pytest.fixture(params=[(0, "node"), (1, "node"), (3, "node"), (1, "data"), (2, "data"), (3, "data")])
def everywhere(comm: MPI.Intracomm, grid_shapes: list[GridShape], request: pytest.FixtureRequest) -> Iterator[list[Exchanging]]:
    """Exchanges on all grids, with real and simulated nodes."""
    ranks_per_node, shard = request.param
    made = [Exchanging(ProcessGrid(comm, shape, ranks_per_node), shard=shard) for shape in grid_shapes]
    yield made
    for one in made:
        one.free()


@pytest.mark.mpi
def test_every_value_of_the_model_counts_once(comm: MPI.Intracomm, everywhere: list[Exchanging]) -> None:
    for one in everywhere:
        counted = sum(s.stop - s.start for s in one.exchange.owned_slices if s.counts)
        assert comm.allreduce(counted) == MODEL.num_parameters, one.grid.shape
        decayed = sum(s.stop - s.start for s in one.exchange.owned_slices if s.counts and s.spec.decay)
        assert comm.allreduce(decayed) == sum(MODEL.costs)


@pytest.mark.mpi
def test_all_values_of_a_model_part_are_owned_once(everywhere: list[Exchanging]) -> None:
    for one in everywhere:
        owned = np.zeros(one.memory.layout.num_values, np.int64)
        for s in one.exchange.owned_slices:
            owned[s.start : s.stop] += 1
        shard = one.memory.ownership.shard
        owned = (one.grid.data if shard == "data" else one.grid.data_in_node).allreduce(owned)
        for i, _ in enumerate(one.memory.layout.blocks):
            assert (one.memory.layout.view(i, owned) == 1).all(), one.grid.shape


@pytest.mark.mpi
def test_engine_and_memory_agree_about_what_a_rank_owns(everywhere: list[Exchanging]) -> None:
    for one in everywhere:
        engine = one.exchange._engine
        owned = [engine.owned(bucket) for bucket in range(engine.num_buckets)]
        assert [extent for extent in owned if extent[0] < extent[1]] == one.memory.ownership.owned, one.grid.shape


@pytest.mark.mpi
@pytest.mark.parametrize("mode", ["exact", "bf16", "int8"])
@pytest.mark.parametrize("ranks_per_node", [1, 2, 3])
def test_pieces_sum_like_slices_and_are_gathered_exactly(comm: MPI.Intracomm, ranks_per_node: int, mode: str) -> None:
    shape = GridShape(comm.size, 1, 1)
    one, other = (Exchanging(ProcessGrid(comm, shape, ranks_per_node), mode, shard=shard) for shard in ("data", "node"))
    for step in range(2):
        layout = one.memory.layout
        drawn = np.zeros(layout.num_values, np.float32)
        for i, block in enumerate(layout.blocks):  # but for the gaps
            layout.view(i, drawn)[...] = np.random.default_rng([comm.rank, step, i]).standard_normal(block.shape)
        for each in (one, other):
            own_grad = each.memory.grads[each.grid.data_in_node.Get_rank()]
            own_grad[...] = drawn
            each.exchange.finish()
            for s in each.exchange.owned_slices:
                each.memory.values[s.start : s.stop] = own_grad[s.start : s.stop]
            each.exchange.publish()
        assert len(set(comm.allgather(one.memory.values.tobytes()))) == 1
        if mode == "exact":
            assert one.memory.values.tobytes() == other.memory.values.tobytes()
        # The sum of a piece is not encoded a second time: nearer to the exact one than where it is.
        exact = exchange_reference(one.grid, drawn, "exact", one.bounds)
        errors = [float(np.square(each.memory.values - exact).sum()) for each in (one, other)]
        assert errors[0] < errors[1] or errors[0] == errors[1] == 0.0
        assert (errors[1] > 0.0) == (mode != "exact" and one.grid.num_nodes > 1)
        if one.grid.num_nodes > 1 and one.exchange.owned_slices:
            assert one.exchange.sent_nbytes > 0
    one.free()
    other.free()


@pytest.mark.mpi
@pytest.mark.parametrize("ranks_per_node", [1, 2])
def test_nodes_keep_the_optimizer_state_that_they_own(comm: MPI.Intracomm, ranks_per_node: int) -> None:
    one = Exchanging(ProcessGrid(comm, GridShape(comm.size, 1, 1), ranks_per_node), bucket_mib=0.004, shard="data")
    kept, grid = one.memory.slots["momentum"].nbytes, one.grid
    rounding = 4 * BLOCK_VALUES * (len(one.bounds) - 1) * grid.num_owners  # at most a block in each slice of a bucket
    assert kept <= 4 * one.memory.layout.num_values / grid.num_nodes + rounding
    first_ranks = kept if grid.data_in_node.Get_rank() == 0 else 0
    assert comm.allreduce(first_ranks) == 4 * one.memory.layout.num_values  # over all nodes once
    if grid.num_nodes > 1:
        with pytest.raises(IndexError, match="keeps no optimizer state"):
            one.memory.slot_range(0, one.memory.layout.num_values)
    one.free()


@pytest.mark.mpi
@pytest.mark.parametrize("mode", ["exact", "int8"])
def test_layers_start_their_buckets(comm: MPI.Intracomm, mode: str) -> None:
    one = Exchanging(ProcessGrid(comm, GridShape(comm.size, 1, 1), 1), mode)
    for step in range(3):
        one.memory.zero_grad()
        own = one.memory.grads[0]
        whole = np.zeros_like(own)
        for layer in reversed(range(len(MODEL.layers))):
            for i in (2 * layer, 2 * layer + 1):
                drawn = np.random.default_rng([comm.rank, step, i]).standard_normal(one.memory.layout.blocks[i].shape)
                one.memory.layout.view(i, own)[...] = drawn
                one.memory.layout.view(i, whole)[...] = drawn
            one.exchange.start_from(
                one.memory.layout.offsets[2 * layer]
            )  # no bucket may start before all of its layers have written
        expected = exchange_reference(one.grid, whole, mode, one.bounds)
        one.exchange.finish()
        for s in one.exchange.owned_slices:
            assert own[s.start : s.stop].tobytes() == expected[s.start : s.stop].tobytes()
            one.memory.values[s.start : s.stop] = own[s.start : s.stop]
        one.exchange.publish()
        assert one.memory.values.tobytes() == expected.tobytes()
    assert (one.exchange.sent_nbytes > 0) == (comm.size > 1)
    one.free()


@pytest.mark.mpi(min_size=2)
def test_a_stall_names_the_ranks(comm: MPI.Intracomm) -> None:
    one = Exchanging(ProcessGrid(comm, GridShape(comm.size, 1, 1)), timeout_s=1.0, bucket_mib=4.0)
    if comm.rank > 0:
        with pytest.raises(StallError, match=r"waiting for data rank\(s\) 0 of this node"):
            one.exchange.finish()
    comm.Barrier()
    one.exchange.finish()
    one.exchange.publish()
    one.free()


@pytest.mark.mpi
def test_weights_start_alike_on_every_grid(comm: MPI.Intracomm, everywhere: list[Exchanging]) -> None:
    for one in everywhere:
        one.memory.initialise(one.grid, 9)
        own = [(block.name, block.starts, one.memory.layout.view(i, one.memory.values).copy())
               for i, block in enumerate(one.memory.layout.blocks)]  # fmt: skip
        wholes = {spec.name: np.full(spec.shape, np.nan, np.float32) for spec in MODEL.parameters}
        for name, starts, values in (item for items in comm.allgather(own) for item in items):
            wholes[name][tuple(slice(s, s + n) for s, n in zip(starts, values.shape, strict=True))] = values
        found = b"".join(whole.tobytes() for whole in wholes.values())
        alone = Exchanging(ProcessGrid(MPI.COMM_SELF, GridShape(1, 1, 1)))
        alone.memory.initialise(alone.grid, 9)
        expected = b"".join(alone.memory.layout.view(i, alone.memory.values).tobytes() for i in range(len(wholes)))
        assert found == expected, one.grid.shape
        alone.free()
