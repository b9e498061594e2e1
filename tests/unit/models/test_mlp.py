"""What an MLP declares."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from lepton_mpi.models.mlp import mlp


def test_layers_and_parameters() -> None:
    model = mlp(64, (100, 50), 10)
    assert [(layer.in_features, layer.out_features) for layer in model.layers] == [(64, 100), (100, 50), (50, 10)]
    assert [layer.relu for layer in model.layers] == [True, True, False]
    assert [layer.split for layer in model.layers] == ["column", "row", "column"]
    assert [layer.gather for layer in model.layers] == [False, False, True]
    assert [p.name for p in model.parameters] == [f"layers.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")]
    assert model.num_parameters == 64 * 100 + 100 + 100 * 50 + 50 + 50 * 10 + 10
    assert (model.max_stages, model.max_shards) == (3, 10)
    assert (model.family, model.in_features, model.num_classes) == ("mlp", 64, 10)


@pytest.mark.parametrize("num_hidden", range(6))
def test_divided_outputs_meet_divided_inputs(num_hidden: int) -> None:
    layers = mlp(9, (7,) * num_hidden, 5).layers
    for first, second in pairwise(layers):
        assert (first.split == "column") == (second.split == "row")  # so one sum serves two layers
        assert not first.gather
    assert layers[0].split == "column"  # the input comes whole
    assert layers[-1].split == "row" or layers[-1].gather  # the output leaves whole


def test_initial_bounds_and_decay() -> None:
    hidden, last = mlp(24, (6,), 3).layers
    assert hidden.weight.bound == pytest.approx(math.sqrt(6 / 24))  # He before ReLU
    assert last.weight.bound == pytest.approx(math.sqrt(3 / 6))
    assert hidden.bias.bound == 0
    assert (hidden.weight.decay, hidden.bias.decay) == (True, False)
    assert (hidden.weight.split_dim, hidden.bias.split_dim) == (0, 0)
    assert (last.weight.split_dim, last.bias.split_dim) == (1, None)


def test_shards_are_limited_by_the_narrowest_divided_dim() -> None:
    assert mlp(2, (), 5).max_shards == 5  # the input is not divided
    assert mlp(2, (8,), 3).max_shards == 8  # neither is the output of a row split
    assert mlp(2, (8, 4), 3).max_shards == 3
