"""Small runs for the tests of training: made data, configurations, and runs on a grid."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from lepton_mpi.comm.grid import GridShape
from lepton_mpi.config.schema import Config
from lepton_mpi.data.dataset import ArrayDataset
from lepton_mpi.data.splits import DataSplits
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.train.run import Run, build_run
from lepton_mpi.train.state import TrainState
from lepton_mpi.train.step import StepMetrics, train_step

NUM_FEATURES, NUM_CLASSES = 13, 5
# Five layers, so that the last one is alone and gathers its outputs; widths that 2, 3 and 4 shards divide unevenly.
HIDDEN_SIZES = (11, 9, 7, 6)


def made_data(num_samples: int, seed: int) -> ArrayDataset:
    """Return samples around a centre for each class."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, NUM_CLASSES, num_samples)
    labels[:NUM_CLASSES] = np.arange(NUM_CLASSES)[:num_samples]
    centres = np.random.default_rng(1).standard_normal((NUM_CLASSES, NUM_FEATURES)) * 2
    inputs = centres[labels] + random.standard_normal((num_samples, NUM_FEATURES))
    return ArrayDataset("made", (inputs * 3 + 10).astype(np.float32), labels, NUM_CLASSES)


def made_splits(num_train: int = 50, num_test: int = 37) -> DataSplits:
    return DataSplits(made_data(num_train, 2), made_data(num_test, 3))


def configure(**sections: dict[str, Any]) -> Config:
    """Return a small configuration, changed by section: `configure(train={"seed": 3})`."""
    config = Config()
    small: dict[str, dict[str, Any]] = {
        "model": {"hidden_sizes": HIDDEN_SIZES},
        "data": {"max_shift": 0},
        "train": {"global_batch": 16, "steps": 12, "seed": 5},
    }
    for name in small.keys() | sections.keys():
        config = replace(config, **{name: replace(getattr(config, name), **(small.get(name, {}) | sections.get(name, {})))})
    return config


def on_grid(config: Config, shape: GridShape, ranks_per_node: int = 0) -> Config:
    grid = replace(config.grid, data=shape.data, stages=shape.stages, shards=shape.shards, ranks_per_node=ranks_per_node)
    return replace(config, grid=grid)


@contextmanager
def running(comm: MPI.Intracomm, config: Config, splits: DataSplits) -> Iterator[Run]:
    """Build a run and free it at the end."""
    run = build_run(comm, config, splits)
    yield run
    run.free()


def facts(steps: list[StepMetrics]) -> str:
    """Return all that the steps of a run found, times left out; equal texts have equal bits."""
    return repr([(m.loss, m.accuracy, m.grad_norm, m.lr, m.num_samples, m.stop) for m in steps])


def do_steps(run: Run, state: TrainState, num_steps: int) -> tuple[TrainState, list[StepMetrics]]:
    found = []
    for _ in range(num_steps):
        state, metrics = train_step(run.training, state, False)
        found.append(metrics)
    return state, found
