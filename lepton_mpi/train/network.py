"""A model on a grid: its parameters in shared memory and the pipeline that runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.grid import GridShape, ProcessGrid, choose_grid_shape
from lepton_mpi.config.schema import GridConfig, ModelConfig
from lepton_mpi.models.family import DataShape, ModelSpec
from lepton_mpi.models.registry import choose_family_task
from lepton_mpi.ops.product import Precision
from lepton_mpi.parallel.gradient_exchange import bucket_bounds
from lepton_mpi.parallel.grid_place import place_on
from lepton_mpi.parallel.node_parameters import NodeParameters
from lepton_mpi.parallel.pipeline import Pipeline
from lepton_mpi.parallel.placement import plan_stage, stage_shapes
from lepton_mpi.parallel.shared_gradients import SharedGradients
from lepton_mpi.parallel.stage import build_stage
from lepton_mpi.parallel.weights import WeightGatherer
from lepton_mpi.runtime.mpi import MPI


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
    """

    grid: ProcessGrid
    model: ModelSpec
    memory: NodeParameters
    bounds: list[int]
    pipeline: Pipeline
    shared_gradients: SharedGradients
    weights: WeightGatherer
    xp: Any

    def for_samples(self, input_shape: tuple[int, ...]) -> Network:
        """Return the same network, with the same weights, for samples of another shape. Local.

        Raises:
            ConfigError: the layers cannot take them.
        """
        if input_shape == self.model.data.input_shape:
            return self
        grid, shape = self.grid, self.grid.shape
        ends = stage_shapes(self.model, shape.stages, shape.shards, grid.stage_index, grid.shard_index, input_shape)
        return replace(self, model=self.model.for_samples(input_shape), pipeline=self.pipeline.with_shapes(*ends))


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
        max_stages=model.max_stages,
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

    Raises:
        GridError: the shape does not fit the ranks.
        SharedMemoryError: a node has too little shared memory.
    """
    grid = ProcessGrid(world, shape, ranks_per_node)
    places = [(stage, shard) for stage in range(shape.stages) for shard in range(shape.shards)]
    plans = {place: plan_stage(model, shape.stages, shape.shards, *place) for place in places}
    layouts = {place: plan.layout for place, plan in plans.items()}
    bounds = {place: bucket_bounds(layout.statistics_start, bucket_mib) for place, layout in layouts.items()}
    num_buckets = {place: len(bound) - 1 for place, bound in bounds.items()}
    memory = NodeParameters(grid, layouts, slot_names, num_buckets, xp)
    here = (grid.stage_index, grid.shard_index)
    stage = build_stage(plans[here], memory.parameters, place_on(grid, seed, precision), grid.is_first_stage)
    pipeline = Pipeline(grid, stage, plans[here], xp, model.pad_id)
    shared = SharedGradients(grid, plans[here], memory.parameters)
    return Network(grid, model, memory, bounds[here], pipeline, shared, WeightGatherer(grid, memory, layouts), xp)
