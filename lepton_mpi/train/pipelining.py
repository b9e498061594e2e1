"""What a configuration says of the pipeline."""

from __future__ import annotations

from typing import Any

from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.grid import GridShape
from lepton_mpi.config.schema import Config, TrainConfig
from lepton_mpi.errors import ConfigError
from lepton_mpi.models.family import ModelSpec
from lepton_mpi.ops.product import Precision
from lepton_mpi.parallel.layer_costs import agree_on_costs
from lepton_mpi.parallel.pipelining import Pipelining
from lepton_mpi.parallel.placement import divide_model
from lepton_mpi.parallel.schedules.registry import choose_virtual_stages
from lepton_mpi.runtime.mpi import MPI


@collective("world")
def choose_pipelining(
    world: MPI.Intracomm, config: Config, model: ModelSpec, shape: GridShape, micro_batches: int, xp: Any, precision: Precision
) -> Pipelining:
    """Return how a model passes through the pipeline.

    Collective over world, since the layers may be measured.

    Args:
        world: all ranks.
        config: the checked configuration.
        model: the model.
        shape: shape of the grid.
        micro_batches: pieces of a batch.
        xp: module of the arrays, numpy or cupy.
        precision: precision of matrix products.

    Raises:
        ConfigError: schedule, stages and layers do not fit; on all ranks alike.
    """
    train = config.train
    virtual = choose_virtual_stages(train.schedule, config.grid.virtual_stages, shape.stages, len(model.layers))
    _check_recompute(train, shape.stages)
    costs = None
    if config.grid.balance == "measure" and shape.stages * virtual > 1:
        rows = -(-train.global_batch // (shape.data * micro_batches))
        costs = agree_on_costs(world, model, rows, xp, precision)
    division = divide_model(model, shape.stages, virtual, costs)
    return Pipelining(division, train.schedule, train.recompute, train.recompute_stages)


def _check_recompute(train: TrainConfig, stages: int) -> None:
    if train.recompute_stages and not train.recompute:
        raise ConfigError("train.recompute_stages: they are for train.recompute = true, which is false")
    if any(stage >= stages for stage in train.recompute_stages):
        raise ConfigError(
            f"train.recompute_stages: expected numbers below the {stages} stage(s), got {list(train.recompute_stages)}"
        )
