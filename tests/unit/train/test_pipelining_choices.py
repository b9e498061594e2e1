"""What a configuration says of the pipeline, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lepton_mpi.comm.grid import GridShape
from lepton_mpi.config.schema import Config, GridConfig, ModelConfig
from lepton_mpi.errors import ConfigError, GridError
from lepton_mpi.models.family import DataShape, ModelSpec
from lepton_mpi.parallel.pipelining import Pipelining
from lepton_mpi.runtime.mpi import start_mpi
from lepton_mpi.train.network import choose_shape, declare_model
from lepton_mpi.train.pipelining import choose_pipelining


def model(num_hidden: int) -> ModelSpec:
    return declare_model(ModelConfig(family="mlp", hidden_sizes=(8,) * num_hidden), DataShape((8,), 8))


def choose(num_hidden: int, stages: int, grid: dict[str, Any] | None = None, **train: Any) -> Pipelining:
    config = Config()
    config = replace(config, grid=replace(config.grid, **(grid or {})), train=replace(config.train, **train))
    return choose_pipelining(start_mpi(), config, model(num_hidden), GridShape(1, stages, 1), 4, np, "fp32")


def test_one_run_of_layers_a_stage_unless_interleaved() -> None:
    assert choose(7, 2).division == ((0, 4), (4, 8))
    assert choose(7, 2, schedule="interleaved").division == ((0, 2), (2, 4), (4, 6), (6, 8))
    found = choose(7, 2, {"virtual_stages": 4}, schedule="interleaved", recompute=True, recompute_stages=(1,))
    assert found == Pipelining(tuple((i, i + 1) for i in range(8)), "interleaved", True, (1,))


def test_measured_stages_hold_every_layer_once() -> None:
    division = choose(7, 3, {"balance": "measure"}).division
    assert division is not None
    assert [layer for first, last in division for layer in range(first, last)] == list(range(8))
    assert len(division) == 3
    assert choose(2, 1, {"balance": "measure"}).division == ((0, 3),)  # nothing to cut, so nothing is measured


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"grid": {"virtual_stages": 2}}, r"grid\.virtual_stages: 2 need train\.schedule = interleaved, which is 1f1b"),
        ({"grid": {"virtual_stages": 9}, "schedule": "interleaved"}, "2 stages of 9 need 18 layers, the model has 8"),
        ({"recompute_stages": (0,)}, r"train\.recompute_stages: they are for train\.recompute = true"),
        ({"recompute": True, "recompute_stages": (1, 2)}, r"expected numbers below the 2 stage\(s\), got \[1, 2\]"),
    ],
)
def test_refusals(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose(7, 2, **keys)


def test_chosen_grids_leave_layers_for_all_virtual_stages() -> None:
    assert choose_shape(GridConfig(data=1, shards=1), model(7), 8).stages == 8
    with pytest.raises(GridError):
        choose_shape(GridConfig(data=1, shards=1, virtual_stages=2), model(7), 8)
    assert choose_shape(GridConfig(shards=1, virtual_stages=2), model(7), 16) == GridShape(4, 4, 1)
