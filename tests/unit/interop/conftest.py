"""Whole models in one process whose weights come from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from numpy.typing import NDArray

from lepton_mpi.config.schema import ModelConfig
from lepton_mpi.interop.choose_map import make_name_map
from lepton_mpi.interop.weights_source import open_weights
from lepton_mpi.models.family import DataShape, ModelSpec
from lepton_mpi.models.registry import find_family
from lepton_mpi.models.task import choose_task
from lepton_mpi.nn.chain import ChainModule
from lepton_mpi.nn.module import Context
from lepton_mpi.nn.parameter import Parameter, cut_parameter, initial_values
from lepton_mpi.nn.place import Alone

Values = dict[str, NDArray[np.float32]]


def declare(config: ModelConfig, data: DataShape) -> ModelSpec:
    """Return the model of a configuration."""
    family = find_family(config.family)
    return family.declare(config, choose_task(config.task, config.family, family.tasks), data)


def random_values(model: ModelSpec, seed: int = 0) -> Values:
    """Return fresh weights with noise on all of them, norms and biases too."""
    random = np.random.default_rng(seed)
    return {
        spec.name: initial_values(cut_parameter(spec, 1, 0), seed) + 0.1 * random.standard_normal(spec.shape).astype(np.float32)
        for spec in model.parameters
    }


def read_values(model: ModelSpec, config: ModelConfig, path: Path) -> Values:
    """Return the weights of a file or folder, which must fit."""
    names = make_name_map(model, config)
    with open_weights(path) as source:
        assert names.require_fit(source) == ()
        return {spec.name: names.read_block(source, cut_parameter(spec, 1, 0)) for spec in model.parameters}


def run_model(model: ModelSpec, values: Values, x: NDArray[np.int64]) -> Any:
    """Return the model's output on one rank."""
    parameters = {
        spec.name: Parameter(cut_parameter(spec, 1, 0), values[spec.name], np.zeros(spec.shape, np.float32))
        for spec in model.parameters
    }
    module = ChainModule([layer.build(parameters, Alone()) for layer in model.layers])
    return module.forward(x, Context(key_mask=None if model.pad_id is None else x != model.pad_id))[0]


class Tools(Protocol):
    """What the fixture `tools` offers."""

    declare = staticmethod(declare)
    random_values = staticmethod(random_values)
    read_values = staticmethod(read_values)
    run_model = staticmethod(run_model)


@pytest.fixture
def tools() -> type[Tools]:
    """The functions above."""
    return Tools
