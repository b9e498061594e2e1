"""The pipeline on several stages gives what one stage gives, for any number and size of micro-batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from small_models import mlp

from lepton_mpi.comm.grid import GridShape, ProcessGrid
from lepton_mpi.nn.losses import SoftmaxCrossEntropy
from lepton_mpi.nn.parameter import initial_values
from lepton_mpi.parallel.grid_place import place_on
from lepton_mpi.parallel.pipeline import LocalLoss, MicroBatches, Pipeline
from lepton_mpi.parallel.placement import divide_model, plan_stage
from lepton_mpi.parallel.schedules.registry import SCHEDULES
from lepton_mpi.parallel.stage import CompleteFrom, GradientReady, build_stages
from lepton_mpi.runtime.mpi import MPI

MODEL = mlp(10, (9, 8, 7, 9, 8, 7, 6), 4)


class Part:
    """One rank's stage with its pipeline."""

    def __init__(self, grid: ProcessGrid, schedule: str = "1f1b", virtual_stages: int = 1, recompute: bool = False) -> None:
        shape = grid.shape
        division = divide_model(MODEL, shape.stages, virtual_stages)
        plan = plan_stage(MODEL, shape.stages, shape.shards, grid.stage_index, grid.shard_index, division=division)
        self.grid, self.plan, self.layout = grid, plan, plan.layout
        values = np.zeros(self.layout.num_values, np.float32)
        self.grads = np.zeros_like(values)
        for i, block in enumerate(self.layout.blocks):
            self.layout.view(i, values)[...] = initial_values(block, 1)
        parameters, place = self.layout.parameters(values, self.grads), place_on(grid, 0, "fp32")
        stages = build_stages(plan, parameters, place, grid.is_first_stage, recompute)
        self.pipeline = Pipeline(grid, stages, plan, np, schedule=SCHEDULES[schedule])

    def batch(self, sizes: list[int]) -> MicroBatches:
        random = np.random.default_rng(2)
        x, y = random.standard_normal((sum(sizes), 10)).astype(np.float32), random.integers(0, 4, sum(sizes))
        ends = np.cumsum(sizes)[:-1]
        inputs = np.split(x, ends) if self.grid.is_first_stage else []
        labels = np.split(y, ends) if self.grid.is_last_stage else []
        firsts = [int(end) for end in np.cumsum([0, *sizes[:-1]])]
        return MicroBatches(sizes, firsts, inputs, labels, sum(sizes))

    def train(self, sizes: list[int], ready: GradientReady) -> LocalLoss:
        observer = CompleteFrom(self.plan.layer_starts, len(sizes), ready)
        return self.pipeline.train(self.batch(sizes), SoftmaxCrossEntropy(), 1 / max(sum(sizes), 1), observer)


@contextmanager
def part_of(comm: MPI.Intracomm, shape: GridShape, **keys: Any) -> Iterator[Part]:
    grid = ProcessGrid(comm, shape)
    yield Part(grid, **keys)
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
                assert found.losses == pytest.approx(expected.losses, rel=1e-5)
                assert found.num_correct == expected.num_correct
            else:
                assert found == LocalLoss()
            for i, block in enumerate(part.layout.blocks):
                own = tuple(slice(start, start + n) for start, n in zip(block.starts, block.shape, strict=True))
                np.testing.assert_allclose(part.layout.view(i, part.grads), whole[block.name][own], rtol=1e-4, atol=1e-6)
            outputs = part.pipeline.infer(part.batch(sizes))
            assert [len(y) for y in outputs] == (sizes if part.grid.is_last_stage else [])
            if outputs:
                np.testing.assert_allclose(np.concatenate(outputs), logits, rtol=1e-4, atol=1e-6)


# (schedule, virtual stages, recompute)
WAYS = [
    ("gpipe", 1, False),
    ("zero_bubble", 1, False),
    ("zero_bubble", 1, True),
    ("1f1b", 1, True),
    ("interleaved", 1, False),
    ("interleaved", 2, False),
    ("interleaved", 2, True),
    ("interleaved", 4, False),
]


@pytest.mark.mpi
@pytest.mark.parametrize("sizes", [[3, 3, 2], [0, 2, 0, 1, 4], [3000, 2500]], ids=str)
def test_all_ways_through_a_pipeline_give_the_same_bits(comm: MPI.Intracomm, sizes: list[int]) -> None:
    """Messages of 3000 rows are too long to be buffered: they leave only once the other stage receives."""
    shape = GridShape(1, comm.size, 1)
    with part_of(comm, shape) as part:
        expected = (part.train(sizes, lambda offset: None), gradients(part))
        outputs = part.pipeline.infer(part.batch(sizes))
    for schedule, virtual_stages, recompute in WAYS:
        if virtual_stages * comm.size > len(MODEL.layers):
            continue
        with part_of(comm, shape, schedule=schedule, virtual_stages=virtual_stages, recompute=recompute) as part:
            done: list[int] = []
            found = part.train(sizes, done.append)
            assert done == list(reversed(part.plan.layer_starts))
            assert len(part.plan.virtual_stages) == virtual_stages
            everywhere = dict(pair for pairs in comm.allgather(list(gradients(part).items())) for pair in pairs)
            before = dict(pair for pairs in comm.allgather(list(expected[1].items())) for pair in pairs)
            assert everywhere == before, (schedule, virtual_stages, recompute)
            assert found == expected[0]
            again = part.pipeline.infer(part.batch(sizes))
            assert [y.tobytes() for y in again] == [y.tobytes() for y in outputs]


def gradients(part: Part) -> dict[str, bytes]:
    """Return the bytes of a rank's gradients by name."""
    return {block.name: part.layout.view(i, part.grads).tobytes() for i, block in enumerate(part.layout.blocks)}


@pytest.mark.mpi
def test_an_observer_hears_of_every_layer_and_micro_batch_in_order(comm: MPI.Intracomm) -> None:
    for schedule, virtual_stages, _ in WAYS:
        if virtual_stages * comm.size > len(MODEL.layers):
            continue
        with part_of(comm, GridShape(1, comm.size, 1), schedule=schedule, virtual_stages=virtual_stages) as part:
            heard = Heard()
            part.pipeline.train(part.batch([2, 0, 3, 1]), SoftmaxCrossEntropy(), 1 / 6, heard)
            for layer in range(len(part.plan.layers)):
                assert [m for i, m in heard.found if i == layer] == [0, 1, 2, 3]
            assert len(heard.found) == 4 * len(part.plan.layers)


class Heard:
    """An observer that writes down what it hears."""

    def __init__(self) -> None:
        self.found: list[tuple[int, int]] = []

    def layer_done(self, layer: int, micro_batch: int) -> None:
        self.found.append((layer, micro_batch))
