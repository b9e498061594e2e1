"""A model on a grid: its parameters in shared memory and the pipeline that runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.grid import GridShape, ProcessGrid, choose_grid_shape
from lepton_mpi.config.schema import GridConfig, ModelConfig
from lepton_mpi.errors import ConfigError
from lepton_mpi.models.family import DataShape, ModelSpec
from lepton_mpi.models.registry import choose_family_task
from lepton_mpi.nn.place import Place
from lepton_mpi.ops.product import Precision
from lepton_mpi.parallel.gradient_exchange import bucket_bounds
from lepton_mpi.parallel.gradient_totals import GradientTotals
from lepton_mpi.parallel.grid_place import place_on
from lepton_mpi.parallel.node_parameters import NodeParameters
from lepton_mpi.parallel.ownership import Shard
from lepton_mpi.parallel.pipeline import Pipeline
from lepton_mpi.parallel.pipelining import Pipelining
from lepton_mpi.parallel.placement import Division, divide_model, plan_stage, stage_shapes
from lepton_mpi.parallel.schedules.registry import SCHEDULES
from lepton_mpi.parallel.shared_gradients import SharedGradients
from lepton_mpi.parallel.stage import build_stages
from lepton_mpi.parallel.weights import WeightGatherer
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.train.virtual_grid import VirtualGrid


@dataclass(frozen=True)
class Network:
    """A model placed on a grid.

    Attributes:
        grid: the process grid.
        model: what the model is.
        memory: parameters of this rank.
        bounds: buckets of this rank's gradient exchange.
        pipeline: runs the model.
        shared_gradients: adds up gradients of parameters that several stages hold.
        weights: brings whole parameters to rank 0.
        xp: module of the arrays, numpy or cupy.
        division: which layers are on which stage.
        place: how its layers, and its loss, reach the other ranks.
        virtual: virtual shards and chunks, for the same bits on every grid.
        totals: exact sums of gradients; None: gradients are summed as fp32.
    """

    grid: ProcessGrid
    model: ModelSpec
    memory: NodeParameters
    bounds: list[int]
    pipeline: Pipeline
    shared_gradients: SharedGradients
    weights: WeightGatherer
    xp: Any
    division: Division
    place: Place
    virtual: VirtualGrid
    totals: GradientTotals | None

    def for_samples(self, input_shape: tuple[int, ...]) -> Network:
        """Return the same network, with the same weights, for samples of another shape. Local.

        Raises:
            ConfigError: the layers cannot take them.
        """
        if input_shape == self.model.data.input_shape:
            return self
        grid, shape = self.grid, self.grid.shape
        here = (grid.stage_index, grid.shard_index)
        sequence, chunks = self.place.sequence, self.virtual.chunks
        ends = stage_shapes(self.model, shape.stages, shape.shards, *here, input_shape, chunks, self.division, sequence)
        pipeline = self.pipeline.with_shapes(ends, input_shape[0] if sequence else 0)
        return replace(self, model=self.model.for_samples(input_shape), pipeline=pipeline)


def declare_model(config: ModelConfig, data: DataShape) -> ModelSpec:
    """Return the model of a configuration for data of a shape. Local.

    Raises:
        ConfigError: there is no such family, or the sizes fit neither each other nor the data.
    """
    family, task = choose_family_task(config)
    model = family.declare(config, task, data)
    _ = model.boundaries, model.parameters  # says at once what does not fit
    return model


def choose_shape(config: GridConfig, model: ModelSpec, num_ranks: int) -> GridShape:
    """Return the shape of the grid for a model on so many ranks. Local.

    Raises:
        GridError: none fits.
    """
    return choose_grid_shape(
        num_ranks,
        config.data,
        config.stages,
        config.shards,
        max_stages=max(model.max_stages // max(config.virtual_stages, 1), 1),
        max_shards=model.max_shards,
    )


@collective("world")
def build_network(
    world: MPI.Intracomm,
    shape: GridShape,
    ranks_per_node: int,
    model: ModelSpec,
    slot_names: Sequence[str],
    bucket_mib: float,
    xp: Any,
    *,
    seed: int = 0,
    precision: Precision = "fp32",
    shard: Shard = "node",
    pipelining: Pipelining | None = None,
    virtual: VirtualGrid | None = None,
    sequence: bool = False,
) -> Network:
    """Place a model on a grid, with zeroed parameters.

    Collective over world.

    Args:
        world: all ranks.
        shape: shape of the grid.
        ranks_per_node: see `GridConfig.ranks_per_node`.
        model: what the model is.
        slot_names: arrays of optimizer state to allocate, as long as the parameters each.
        bucket_mib: size of a bucket of the gradient exchange, MiB.
        xp: module of the arrays, numpy or cupy.
        seed: seed of what is random in layers.
        precision: precision of matrix products.
        shard: over which ranks optimizer state is divided, see `Ownership`.
        pipelining: how its layers pass through the pipeline; None: the default.
        virtual: virtual shards and chunks, for the same bits on every grid; None: none.
        sequence: whether shards divide the positions between divided layers too, see `Place`.

    Raises:
        ConfigError: the layers of the model cannot work on slices of the positions.
        GridError: the shape does not fit the ranks.
        SharedMemoryError: a node has too little shared memory.
    """
    if sequence and not model.divides_positions:
        raise ConfigError(f"grid.sequence: the layers of {model.family} do not work on slices of positions: leave it out")
    grid = ProcessGrid(world, shape, ranks_per_node)
    places = [(stage, shard) for stage in range(shape.stages) for shard in range(shape.shards)]
    pipelining, virtual = pipelining or Pipelining(), virtual or VirtualGrid()
    division = pipelining.division or divide_model(model, shape.stages)
    plans = {at: plan_stage(model, shape.stages, shape.shards, *at, virtual.chunks, division, sequence) for at in places}
    layouts = {place: plan.layout for place, plan in plans.items()}
    bounds = {place: bucket_bounds(layout.statistics_start, bucket_mib, layout.private_start) for place, layout in layouts.items()}
    memory = NodeParameters(grid, layouts, slot_names, bounds, xp, shard)
    here = (grid.stage_index, grid.shard_index)
    recompute = pipelining.recomputes(grid.stage_index)
    totals = GradientTotals(grid, memory.layout, model.parameters, virtual.shards) if virtual.shards else None
    place = place_on(grid, seed, precision, virtual.chunks, totals.take if totals else None, sequence)
    stages = build_stages(plans[here], memory.parameters, place, grid.is_first_stage, recompute)
    positions = model.data.input_shape[0] if sequence else 0
    pipeline = Pipeline(grid, stages, plans[here], xp, model.pad_id, SCHEDULES[pipelining.schedule], positions)
    gradients = totals.views(memory.layout) if totals else [parameter.grad for parameter in memory.parameters]
    shared = SharedGradients(grid, plans[here], gradients)
    weights = WeightGatherer(grid, memory, layouts)
    return Network(grid, model, memory, bounds[here], pipeline, shared, weights, xp, division, place, virtual, totals)
