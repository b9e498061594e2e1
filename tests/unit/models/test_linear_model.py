"""Linear, logistic and softmax regression."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lepton_mpi.config.schema import ModelConfig
from lepton_mpi.models.family import DataShape, ModelSpec
from lepton_mpi.models.linear import LinearModel
from lepton_mpi.models.task import TASKS
from lepton_mpi.nn.module import Context


def linear(task: str, *data: Any) -> ModelSpec:
    return LinearModel().declare(ModelConfig(family="linear"), TASKS[task], DataShape(*data))


@pytest.mark.parametrize(
    ("task", "data", "outputs"),
    [
        ("classification", ((8, 8), 10), 10),
        ("regression", ((8, 8), 0), 1),
        ("regression", ((8, 8), 0, (3, 2)), 6),
        ("binary", ((8, 8), 0, (1,)), 1),
    ],
)
def test_what_is_declared(task: str, data: Any, outputs: int) -> None:
    model = linear(task, *data)
    assert model.output_shape == (outputs,)
    assert [(spec.name, spec.shape) for spec in model.parameters] == [("linear.weight", (outputs, 64)), ("linear.bias", (outputs,))]
    assert (model.num_parameters, model.max_shards, model.max_stages) == (65 * outputs, 64, 1)
    assert model.summary == f"linear 64-{outputs}"


def test_it_is_one_matrix_and_starts_at_zero(build: Any) -> None:
    module, parameters = build(linear("classification", (2, 3), 5))
    x = np.random.default_rng(0).standard_normal((4, 2, 3)).astype(np.float32)
    assert not module.forward(x, Context())[0].any()
    parameters["linear.weight"].value[...] = np.arange(30).reshape(5, 6)
    parameters["linear.bias"].value[...] = np.arange(5)
    expected = x.reshape(4, 6) @ np.arange(30).reshape(5, 6).T + np.arange(5)
    np.testing.assert_allclose(module.forward(x, Context())[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [0, 1, 5])
def test_gradients_against_central_differences(batch: int, check_gradients: Any) -> None:
    check_gradients(linear("regression", (3, 2)), np.random.default_rng(1).standard_normal((batch, 3, 2)))


@pytest.mark.parametrize("shards", [2, 3, 7])
def test_shards_make_no_difference(shards: int, check_shards: Any) -> None:
    check_shards(linear("binary", (7,)), np.random.default_rng(1).standard_normal((5, 7)), shards)
