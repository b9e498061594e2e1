"""Whole models in one process: built on fresh weights, and their gradients against central differences."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import pytest
from numpy.typing import NDArray
from threaded_shards import train_pass

from lepton_mpi.models.family import ModelSpec
from lepton_mpi.nn.chain import ChainModule
from lepton_mpi.nn.module import Context
from lepton_mpi.nn.parameter import Parameter, cut_parameter, initial_values
from lepton_mpi.nn.place import Alone

STEP = 1e-6


class Build(Protocol):
    """What the fixture `build` is."""

    def __call__(self, model: ModelSpec, seed: int = 0, dtype: Any = np.float32) -> tuple[ChainModule, dict[str, Parameter]]: ...


@pytest.fixture
def build() -> Build:
    """Build all layers of a model on one rank; returns the module and its parameters by name, gradients 0."""

    def made(model: ModelSpec, seed: int = 0, dtype: Any = np.float32) -> tuple[ChainModule, dict[str, Parameter]]:
        parameters = {}
        for spec in model.parameters:
            block = cut_parameter(spec, 1, 0)
            value = initial_values(block, seed).astype(dtype)
            parameters[spec.name] = Parameter(block, value, np.zeros_like(value))
        place = Alone(seed=seed)
        return ChainModule([layer.build(parameters, place) for layer in model.layers]), parameters

    return made


@pytest.fixture
def check_gradients(build: Build) -> Any:
    """Check a model's gradients in float64 against central differences at random elements of every weight."""

    def check(model: ModelSpec, x: NDArray[Any], context: Context | None = None, places: int = 3, rel: float = 1e-4) -> None:
        module, parameters = build(model, seed=1, dtype=np.float64)
        random = np.random.default_rng(2)
        context = context or Context(training=True, num_global=max(len(x), 1))
        weights = [parameter for parameter in parameters.values() if parameter.block.spec.role == "weight"]
        for weight in weights:  # away from zeros and ones, where mistakes do not show
            weight.value[...] += 0.1 * random.standard_normal(weight.value.shape)
        y, saved = module.forward(x, context)
        dy = random.standard_normal(y.shape)
        module.backward_weight(module.backward_input(dy, saved, want_dx=False)[1])
        for weight in weights:
            # Embedding tables: look at rows that are in use.
            used = np.argwhere(weight.grad) if weight.grad.any() else np.argwhere(np.ones_like(weight.grad))
            for at in map(tuple, used[random.choice(len(used), min(places, len(used)), replace=False)]):
                kept = weight.value[at]
                ends = []
                for value in (kept + STEP, kept - STEP):
                    weight.value[at] = value
                    ends.append(float((module.forward(x, context)[0] * dy).sum()))
                weight.value[at] = kept
                slope = (ends[0] - ends[1]) / (2 * STEP)
                assert weight.grad[at] == pytest.approx(slope, rel=rel, abs=1e-6), (weight.block.name, at)

    return check


@pytest.fixture
def check_shards() -> Any:
    """Check that a model cut into shards has full blocks and does what the whole one does, up to rounding."""

    def check(model: ModelSpec, x: NDArray[Any], shards: int) -> None:
        assert shards <= model.max_shards
        for spec in model.parameters:
            assert all(cut_parameter(spec, model.max_shards, shard).size for shard in range(model.max_shards)), spec.name
        y, gradients = train_pass(model, x, 1)
        divided_y, divided_gradients = train_pass(model, x, shards)
        np.testing.assert_allclose(divided_y, y, rtol=1e-9, atol=1e-10)
        for name, gradient in gradients.items():
            np.testing.assert_allclose(divided_gradients[name], gradient, rtol=1e-7, atol=1e-9, err_msg=name)

    return check
