"""Stages cut over shards give the outputs and gradients of the whole stage."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from small_models import mlp

from lepton_mpi.comm.grid import GridShape, ProcessGrid
from lepton_mpi.nn.initial import Constant
from lepton_mpi.nn.module import Context
from lepton_mpi.nn.parameter import ParameterBlock, initial_values
from lepton_mpi.parallel.grid_place import place_on
from lepton_mpi.parallel.placement import StagePlan, plan_stage
from lepton_mpi.parallel.stage import CompleteFrom, build_stages
from lepton_mpi.runtime.mpi import MPI

SEED, BATCH = 3, 7
TRAINING = Context(training=True)
MODELS = [mlp(13, (), 5), mlp(13, (9,), 5), mlp(13, (9, 6), 5), mlp(12, (8, 8, 4), 4)]  # with and without a lone last layer


class WholeOrShard:
    """A stage in float64, and its gradients."""

    def __init__(self, plan: StagePlan, grid: ProcessGrid) -> None:
        layout = plan.layout
        self.starts = plan.layer_starts
        values, self.grads = np.zeros(layout.num_values), np.zeros(layout.num_values)
        for i, block in enumerate(layout.blocks):
            layout.view(i, values)[...] = self.value_of(block)
        self.layout = layout
        (self.stage,) = build_stages(plan, layout.parameters(values, self.grads), place_on(grid, 0, "fp32"), True)

    @staticmethod
    def value_of(block: ParameterBlock) -> NDArray[np.float64]:
        values = initial_values(block, SEED).astype(np.float64)
        if block.spec.initial == Constant(0.0):  # biases: something else than zeros
            values += np.arange(block.starts[0], block.starts[0] + block.shape[0]) / 10 - 0.3
        return values

    def grad_of(self, index: int) -> NDArray[np.float64]:
        return self.layout.view(index, self.grads)


@pytest.mark.mpi
@pytest.mark.parametrize("halves", [True, False])
@pytest.mark.parametrize("model", MODELS, ids=lambda model: f"{len(model.layers)} layers")
def test_shards_together_are_the_whole_stage(comm: MPI.Intracomm, model, halves: bool) -> None:  # type: ignore[no-untyped-def]
    grid, alone = ProcessGrid(comm, GridShape(1, 1, comm.size)), ProcessGrid(MPI.COMM_SELF, GridShape(1, 1, 1))
    whole = WholeOrShard(plan_stage(model, 1, 1, 0, 0), alone)
    shard = WholeOrShard(plan_stage(model, 1, comm.size, 0, comm.rank), grid)
    random = np.random.default_rng(1)
    for _ in range(2):  # gradients add up
        x, dy = random.standard_normal((BATCH, *model.data.input_shape)), random.standard_normal((BATCH, *model.output_shape))
        outputs = []
        for part in (whole, shard):
            y, saved = part.stage.forward(x, TRAINING)
            outputs.append(y)
            done: list[int] = []
            observer = CompleteFrom(part.starts, 1, done.append)
            if halves:
                _, pending = part.stage.backward_input(dy, saved)
                part.stage.backward_weight(pending, observer, 0)
            else:
                part.stage.backward(dy, saved, observer, 0)
            assert done == list(reversed(part.starts))
        np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-12, atol=1e-13)
        assert len(set(comm.allgather(outputs[1].tobytes()))) == 1  # what is replicated is so to the bit
    places = {block.name: i for i, block in enumerate(whole.layout.blocks)}
    for i, block in enumerate(shard.layout.blocks):
        own = tuple(slice(start, start + n) for start, n in zip(block.starts, block.shape, strict=True))
        np.testing.assert_allclose(
            shard.grad_of(i), whole.grad_of(places[block.name])[own], rtol=1e-11, atol=1e-12, err_msg=block.name
        )
    grid.free()
    alone.free()


@pytest.mark.mpi
def test_the_gradient_of_a_replicated_input_is_whole(comm: MPI.Intracomm) -> None:
    """A later stage sends its input's gradient on; central differences tell what it should be."""
    model = mlp(6, (8, 8, 4), 4)
    grid = ProcessGrid(comm, GridShape(1, 1, comm.size))
    part = WholeOrShard(plan_stage(model, 1, comm.size, 0, comm.rank), grid)
    part.stage._skip_dx = False
    x = np.random.default_rng(2).standard_normal((3, 6))
    dy = np.random.default_rng(3).standard_normal((3, 4))
    _, saved = part.stage.forward(x, TRAINING)
    dx, _ = part.stage.backward_input(dy, saved)
    step = 1e-6
    for place in [(0, 0), (1, 5), (2, 3)]:
        nudge = np.zeros_like(x)
        nudge[place] = step
        up, down = part.stage.forward(x + nudge, TRAINING)[0], part.stage.forward(x - nudge, TRAINING)[0]
        assert dx[place] == pytest.approx(((up - down) * dy).sum() / (2 * step), rel=1e-6, abs=1e-9)
    grid.free()
