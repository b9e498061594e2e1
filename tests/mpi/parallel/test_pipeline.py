"""The pipeline on several stages gives what one stage gives, for any number and size of micro-batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from small_models import mlp

from lepton_mpi.comm.grid import GridShape, ProcessGrid
from lepton_mpi.nn.losses import SoftmaxCrossEntropy
from lepton_mpi.nn.parameter import initial_values
from lepton_mpi.parallel.grid_place import place_on
from lepton_mpi.parallel.pipeline import LocalLoss, MicroBatches, Pipeline
from lepton_mpi.parallel.placement import plan_stage
from lepton_mpi.parallel.stage import GradientReady, build_stage
from lepton_mpi.runtime.mpi import MPI

MODEL = mlp(10, (9, 8, 7), 4)


class Part:
    """One rank's stage with its pipeline."""

    def __init__(self, grid: ProcessGrid) -> None:
        shape = grid.shape
        plan = plan_stage(MODEL, shape.stages, shape.shards, grid.stage_index, grid.shard_index)
        self.grid, self.plan, self.layout = grid, plan, plan.layout
        values = np.zeros(self.layout.num_values, np.float32)
        self.grads = np.zeros_like(values)
        for i, block in enumerate(self.layout.blocks):
            self.layout.view(i, values)[...] = initial_values(block, 1)
        stage = build_stage(plan, self.layout.parameters(values, self.grads), place_on(grid, 0, "fp32"), grid.is_first_stage)
        self.pipeline = Pipeline(grid, stage, plan, np)

    def batch(self, sizes: list[int]) -> MicroBatches:
        random = np.random.default_rng(2)
        x, y = random.standard_normal((sum(sizes), 10)).astype(np.float32), random.integers(0, 4, sum(sizes))
        ends = np.cumsum(sizes)[:-1]
        inputs = np.split(x, ends) if self.grid.is_first_stage else []
        labels = np.split(y, ends) if self.grid.is_last_stage else []
        firsts = [int(end) for end in np.cumsum([0, *sizes[:-1]])]
        return MicroBatches(sizes, firsts, inputs, labels, sum(sizes))

    def train(self, sizes: list[int], ready: GradientReady) -> LocalLoss:
        return self.pipeline.train(self.batch(sizes), SoftmaxCrossEntropy(), 1 / max(sum(sizes), 1), ready)


@contextmanager
def part_of(comm: MPI.Intracomm, shape: GridShape) -> Iterator[Part]:
    grid = ProcessGrid(comm, shape)
    yield Part(grid)
    grid.free()


SIZES = [[4], [3, 3, 2], [1] * 9, [0, 2, 0], [2, 0, 0, 0, 0], [0]]


@pytest.mark.mpi
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_stages_together_are_one_model(comm: MPI.Intracomm, grid_shapes: list[GridShape], sizes: list[int]) -> None:
    with part_of(MPI.COMM_SELF, GridShape(1, 1, 1)) as alone:
        expected = alone.train(sizes, lambda offset: None)
        whole = {block.name: alone.layout.view(i, alone.grads) for i, block in enumerate(alone.layout.blocks)}
        logits = np.concatenate(alone.pipeline.infer(alone.batch(sizes)))
    for shape in grid_shapes:
        with part_of(comm, shape) as part:
            done: list[int] = []
            found = part.train(sizes, done.append)
            assert done == list(reversed(part.plan.layer_starts))  # each layer once, after the last micro-batch
            if part.grid.is_last_stage:
                assert found.loss == pytest.approx(expected.loss, rel=1e-6)
                assert found.num_correct == expected.num_correct
            else:
                assert (found.loss, found.num_correct) == (0.0, 0)
            for i, block in enumerate(part.layout.blocks):
                own = tuple(slice(start, start + n) for start, n in zip(block.starts, block.shape, strict=True))
                np.testing.assert_allclose(part.layout.view(i, part.grads), whole[block.name][own], rtol=1e-4, atol=1e-6)
            outputs = part.pipeline.infer(part.batch(sizes))
            assert [len(y) for y in outputs] == (sizes if part.grid.is_last_stage else [])
            if outputs:
                np.testing.assert_allclose(np.concatenate(outputs), logits, rtol=1e-4, atol=1e-6)
