"""The exchange of factors in training: nothing lost, equal values on all ranks, exact where it has to be, short."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from small_models import mlp

from lepton_mpi.comm.grid import GridShape, ProcessGrid
from lepton_mpi.comm.reduction import sum_in_rank_order
from lepton_mpi.parallel.gradient_exchange import bucket_bounds
from lepton_mpi.parallel.node_parameters import NodeParameters
from lepton_mpi.parallel.ownership import Shard
from lepton_mpi.parallel.placement import plan_stage
from lepton_mpi.parallel.powersgd_exchange import PowerSgdExchange
from lepton_mpi.runtime.mpi import MPI

MODEL = mlp(60, (70, 80, 18), 6)


class Exchanging:
    """One rank's parameters with their exchange."""

    def __init__(self, comm: MPI.Intracomm, shape: GridShape, ranks_per_node: int, shard: Shard) -> None:
        self.grid = ProcessGrid(comm, shape, ranks_per_node)
        places = [(stage, shard) for stage in range(shape.stages) for shard in range(shape.shards)]
        layouts = {p: plan_stage(MODEL, shape.stages, shape.shards, *p).layout for p in places}
        bounds = {p: bucket_bounds(layout.num_values, 0.008, layout.private_start) for p, layout in layouts.items()}
        self.memory = NodeParameters(self.grid, layouts, [], bounds, np, shard)
        self.exchange = PowerSgdExchange(self.grid, self.memory, 60.0, False, rank=2, seed=3)
        self.own = self.memory.grads[self.grid.data_in_node.Get_rank()]

    def reduce(self, step: int) -> NDArray[np.float64]:
        """Do a step with values in the place of weights, and return the exact sum of the gradients."""
        layout, total = self.memory.layout, np.zeros(self.memory.layout.num_values)
        for rank in range(self.grid.data.Get_size()):
            for i, block in enumerate(layout.blocks):
                drawn = np.random.default_rng([rank, step, i, *block.starts]).standard_normal(block.shape).astype(np.float32)
                if block.spec.split_dim is None:  # copies have the same gradients
                    drawn = np.random.default_rng([rank, step, i]).standard_normal(block.shape).astype(np.float32)
                layout.view(i, total)[...] += drawn
                if rank == self.grid.data.Get_rank():
                    layout.view(i, self.own)[...] = drawn
        self.exchange.begin_step(step)
        for offset in reversed(layout.offsets):
            self.exchange.start_from(offset)
        self.exchange.finish()
        for s in self.exchange.owned_slices:
            self.memory.values[s.start : s.stop] = self.own[s.start : s.stop]
        self.exchange.publish()
        return total

    def owed(self) -> NDArray[np.float32]:
        assert self.exchange.residual is not None
        return sum_in_rank_order(self.grid.data, self.exchange.residual)

    def free(self) -> None:
        self.exchange.free()
        self.grid.free()


@pytest.fixture(params=[(1, "node"), (2, "node"), (3, "node"), (1, "data"), (3, "data")])
def everywhere(comm: MPI.Intracomm, grid_shapes: list[GridShape], request: pytest.FixtureRequest) -> Iterator[list[Exchanging]]:
    made = [Exchanging(comm, shape, *request.param) for shape in grid_shapes]
    yield made
    for one in made:
        one.free()


@pytest.mark.mpi
def test_sums_and_what_is_owed_make_the_exact_sums(everywhere: list[Exchanging]) -> None:
    for one in everywhere:
        layout = one.memory.layout
        sums, exact = np.zeros(layout.num_values), np.zeros(layout.num_values)
        for step in range(5):
            one.exchange.warming = step == 2  # which pays something of what is owed
            exact += one.reduce(step)
            sums += one.memory.values
            assert len(set(one.grid.data.allgather(one.memory.values.tobytes()))) == 1
        several = one.memory.ownership.num_nodes > 1
        owed = one.owed()
        np.testing.assert_allclose(sums[: owed.size] + owed, exact[: owed.size], atol=1e-3)
        assert owed.any() == several
        for i, block in enumerate(layout.blocks):
            view = layout.view(i, sums - exact)
            if len(block.shape) == 1:  # exact; what bf16 left out is paid
                assert np.abs(view).max(initial=0.0) < 1e-4
        compressed = [m for m in one.exchange.kept if np.abs(one.exchange.kept[m]).any()]
        assert (len(compressed) > 0) == several


@pytest.mark.mpi(min_size=2)
def test_few_bytes_are_sent(comm: MPI.Intracomm) -> None:
    one = Exchanging(comm, GridShape(comm.size, 1, 1), 1, "node")
    one.reduce(0)
    factors = sum(2 * sum(shape) for shape in [(70, 60), (80, 70), (18, 80), (6, 18)] if 2 * sum(shape) < shape[0] * shape[1])
    exact = 70 + 80 + 18 + 6 + (6 * 18 if 2 * 24 >= 6 * 18 else 0)
    assert comm.allreduce(one.exchange.sent_nbytes) == 2 * (comm.size - 1) * 4 * (factors + exact)
    one.free()


@pytest.mark.mpi(min_size=2)
def test_a_weight_of_copies_is_exact(comm: MPI.Intracomm) -> None:
    if comm.size % 2:
        return
    one = Exchanging(comm, GridShape(comm.size // 2, 1, 2), 1, "node")
    total = one.reduce(0)
    first = one.memory.layout.private_start
    assert first > 0
    np.testing.assert_allclose(one.memory.values[:first], total[:first], atol=1e-5 * comm.size)
    one.free()
