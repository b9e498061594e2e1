"""What an MLP declares."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from lepton_mpi.config.schema import ModelConfig
from lepton_mpi.models.family import DataShape, ModelSpec
from lepton_mpi.models.mlp import Mlp, dense_layers
from lepton_mpi.models.task import TASKS
from lepton_mpi.nn.initial import Constant, Uniform
from lepton_mpi.nn.linear import Linear


def mlp(input_shape: tuple[int, ...], hidden_sizes: tuple[int, ...], num_classes: int) -> ModelSpec:
    return Mlp().declare(ModelConfig(hidden_sizes=hidden_sizes), TASKS["classification"], DataShape(input_shape, num_classes))


def linear_layers(*widths: int) -> list[Linear]:
    layers = dense_layers("layers", widths, flatten=False)
    assert all(isinstance(layer, Linear) for layer in layers)
    return layers  # type: ignore[return-value]


def test_layers_and_parameters() -> None:
    model = mlp((8, 8), (100, 50), 10)
    assert model.boundaries == (((8, 8),), ((100,),), ((50,),), ((10,),))
    assert [p.name for p in model.parameters] == [f"layers.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")]
    assert model.num_parameters == 64 * 100 + 100 + 100 * 50 + 50 + 50 * 10 + 10
    assert (model.max_stages, model.max_shards) == (3, 10)
    assert (model.family, model.summary) == ("mlp", "mlp 64-100-50-10")
    layers = linear_layers(64, 100, 50, 10)
    assert [layer.relu for layer in layers] == [True, True, False]
    assert [layer.split for layer in layers] == ["column", "row", "column"]
    assert [layer.gather for layer in layers] == [False, False, True]


def test_as_many_outputs_as_values() -> None:
    model = Mlp().declare(ModelConfig(hidden_sizes=(4,)), TASKS["regression"], DataShape((3,), 0, (2,)))
    assert model.output_shape == (2,)


@pytest.mark.parametrize("num_hidden", range(6))
def test_divided_outputs_meet_divided_inputs(num_hidden: int) -> None:
    layers = linear_layers(9, *(7,) * num_hidden, 5)
    for first, second in pairwise(layers):
        assert (first.split == "column") == (second.split == "row")  # so one sum serves two layers
        assert first.divided == (first.split == "column")
    assert layers[0].split == "column"  # the input comes whole
    assert not layers[-1].divided  # the output leaves whole


def test_initial_values_and_decay() -> None:
    hidden, last = linear_layers(24, 6, 3)
    assert hidden.weight_spec.initial == Uniform(math.sqrt(6 / 24))  # He before ReLU
    assert last.weight_spec.initial == Uniform(math.sqrt(3 / 6))
    assert hidden.bias_spec.initial == Constant(0.0)
    assert (hidden.weight_spec.decay, hidden.bias_spec.decay) == (True, False)
    assert (hidden.weight_spec.split_dim, hidden.bias_spec.split_dim) == (0, 0)
    assert (last.weight_spec.split_dim, last.bias_spec.split_dim) == (1, None)


def test_shards_are_limited_by_the_narrowest_divided_dim() -> None:
    assert mlp((2,), (), 5).max_shards == 5  # the input is not divided
    assert mlp((2,), (8,), 3).max_shards == 8  # neither is the output of a row split
    assert mlp((2,), (8, 4), 3).max_shards == 3
