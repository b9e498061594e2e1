"""What a run chooses for itself, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from lepton_mpi.comm.grid import GridShape
from lepton_mpi.config.schema import Config, GridConfig, ModelConfig, TrainConfig
from lepton_mpi.data.dataset import ArrayDataset
from lepton_mpi.data.splits import DataSplits
from lepton_mpi.errors import DataError, GridError
from lepton_mpi.models.family import DataShape
from lepton_mpi.models.mlp import Mlp
from lepton_mpi.models.task import TASKS
from lepton_mpi.runtime.mpi import start_mpi
from lepton_mpi.train.network import choose_shape, declare_model
from lepton_mpi.train.run import build_run, choose_micro_batches
from lepton_mpi.train.state import TrainState


@pytest.mark.parametrize(
    ("config", "shape", "expected"),
    [
        (TrainConfig(), GridShape(4, 1, 4), 1),  # nothing to keep busy
        (TrainConfig(), GridShape(4, 2, 1), 4),
        (TrainConfig(), GridShape(1, 5, 1), 10),
        (TrainConfig(global_batch=10), GridShape(4, 4, 1), 3),  # single samples
        (TrainConfig(micro_batches=7), GridShape(4, 1, 1), 7),
        (TrainConfig(micro_batches=1), GridShape(1, 4, 1), 1),
    ],
)
def test_micro_batches(config: TrainConfig, shape: GridShape, expected: int) -> None:
    assert choose_micro_batches(config, shape, batch_statistics=False) == expected


def test_batch_statistics_are_of_the_whole_batch_unless_told_otherwise() -> None:
    assert choose_micro_batches(TrainConfig(), GridShape(1, 4, 1), batch_statistics=True) == 1
    assert choose_micro_batches(TrainConfig(micro_batches=3), GridShape(1, 1, 1), batch_statistics=True) == 3


def test_shape_and_model_follow_the_configuration() -> None:
    config, data = ModelConfig(hidden_sizes=(8, 6)), DataShape((12,), 3)
    model = declare_model(config, data)
    assert model == Mlp().declare(config, TASKS["classification"], data)
    assert choose_shape(GridConfig(shards=3), model, 6) == GridShape(2, 1, 3)
    with pytest.raises(GridError, match="at most 3 stages"):
        choose_shape(GridConfig(stages=4), model, 4)


@pytest.mark.parametrize(
    ("num_samples", "num_classes", "message"),
    [(0, 3, r"found 0 sample\(s\) of 3"), (4, 1, r"found 4 sample\(s\) of 1 class\(es\)")],
)
def test_data_that_cannot_be_learnt_from(num_samples: int, num_classes: int, message: str) -> None:
    dataset = ArrayDataset("poor", np.zeros((num_samples, 4), np.float32), np.zeros(num_samples, np.int64), num_classes)
    with pytest.raises(DataError, match=message):
        build_run(start_mpi(), Config(), DataSplits(dataset, dataset))


def test_state_advances_to_the_following_batch() -> None:
    assert TrainState(3, 0, 96).advance((1, 0)) == TrainState(4, 1, 0)
