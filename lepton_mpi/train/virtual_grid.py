"""Into how many pieces work is cut for the same bits on every grid, see docs/reproducible.md."""

from __future__ import annotations

from dataclasses import dataclass

from lepton_mpi.comm.grid import GridShape
from lepton_mpi.config.schema import Config
from lepton_mpi.errors import ConfigError
from lepton_mpi.models.family import ModelSpec


@dataclass(frozen=True)
class VirtualGrid:
    """Into how many pieces work is cut, whatever the ranks, so that its bits do not depend on them.

    Attributes:
        shards: pieces of a batch; 0: batches are divided over the ranks that there are.
        chunks: chunks of dims that shards divide; 0: one a shard.
    """

    shards: int = 0
    chunks: int = 0


def choose_virtual_grid(config: Config, model: ModelSpec, shape: GridShape) -> VirtualGrid:
    """Return the virtual shards and chunks of a configuration. Local, pure.

    Raises:
        ConfigError: what is asked for cannot be the same on every grid.
    """
    train = config.train
    if not train.reproducible:
        return VirtualGrid()
    if config.reduce.mode != "exact":
        raise ConfigError(
            f'reduce.mode = "{config.reduce.mode}" rounds what travels between nodes, and so depends on the grid: set it to '
            '"exact", or train.reproducible to false'
        )
    if config.run.threads > 1:
        raise ConfigError(
            f"run.threads = {config.run.threads}: the bits of a product depend on its threads, and with train.reproducible "
            "there is one a rank: leave run.threads at 0, and start more ranks"
        )
    if config.optimizer.name == "onebit_adam":
        raise ConfigError(
            'optimizer.name = "onebit_adam" sends rounded momentum, which depends on the grid: choose another, or set '
            "train.reproducible to false"
        )
    if model.batch_statistics and train.micro_batches > 1:
        raise ConfigError(
            f"train.micro_batches = {train.micro_batches}: with train.reproducible a model that looks at the statistics of a "
            "micro-batch has one, the whole batch: leave train.micro_batches at 0"
        )
    if shape.shards > train.virtual_chunks:
        raise ConfigError(
            f"train.virtual_chunks = {train.virtual_chunks}: expected at least grid.shards = {shape.shards}; it is part of the "
            "result, so choose it for the largest grid that is to give the same bits"
        )
    return VirtualGrid(train.virtual_shards, train.virtual_chunks)
