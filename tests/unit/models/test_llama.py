"""Llama: what is declared, what is refused, gradients and shards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lepton_mpi.config.schema import ModelConfig
from lepton_mpi.errors import ConfigError
from lepton_mpi.models.family import DataShape, ModelSpec
from lepton_mpi.models.llama import Llama
from lepton_mpi.models.task import TASKS

TOKENS, LENGTH = 23, 7
SMALL = {"width": 24, "num_layers": 2, "num_heads": 6, "num_kv_heads": 3, "intermediate_size": 13, "context": 9}


def llama(**sizes: Any) -> ModelSpec:
    config = ModelConfig(family="llama", **{**SMALL, **sizes})
    return Llama().declare(config, TASKS["language_model"], DataShape((LENGTH,), TOKENS))


def ids(batch: int) -> Any:
    return np.random.default_rng(0).integers(0, TOKENS, (batch, LENGTH))


def test_parameters_and_shapes() -> None:
    model = llama()
    assert (model.input_kind, model.output_shape, len(model.layers)) == ("ids", (LENGTH, TOKENS), 4)
    assert model.summary == "llama 2 layers, width 24, 6 heads on 3, context 9, 23 tokens"
    shapes = {spec.name: spec.shape for spec in model.parameters}
    assert not any(name.endswith("bias") for name in shapes)
    assert shapes["blocks.0.attention.q_proj.weight"] == (24, 24)
    assert shapes["blocks.0.attention.k_proj.weight"] == (12, 24)
    assert shapes["blocks.1.feed_forward.down_proj.weight"] == (24, 13)
    assert shapes["head.weight"] == (TOKENS, 24)
    assert model.num_parameters == 2 * 23 * 24 + 2 * (24 * (24 + 24 + 12 + 12) + 3 * 13 * 24 + 48) + 24
    assert model.max_shards == 3
    assert not any(layer.divided for layer in model.layers)
    assert {spec.initial.deviation for spec in model.parameters if len(spec.shape) == 2} == {0.02}


@pytest.mark.parametrize(("width", "expected"), [(384, 1024), (24, 64), (1536, 4096), (192, 512)])
def test_usual_hidden_width(width: int, expected: int) -> None:
    shapes = {spec.name: spec.shape for spec in llama(width=width, intermediate_size=0).parameters}
    assert shapes["blocks.0.feed_forward.up_proj.weight"] == (expected, width)


def test_a_tied_output_layer() -> None:
    assert llama(tied="yes").num_parameters == llama().num_parameters - TOKENS * 24


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"width": 25}, r"model\.width: expected a multiple of model\.num_heads = 6, got 25"),
        ({"width": 18}, r"model\.width: rotary positions turn pairs of features"),
        ({"num_kv_heads": 4}, r"model\.num_kv_heads: expected a divisor of model\.num_heads = 6, got 4"),
        ({"context": 6}, r"model\.context: expected at least 7"),
        ({"vocab_size": 22}, r"model\.vocab_size: expected at least 23"),
    ],
)
def test_sizes_that_do_not_fit(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        llama(**sizes)


@pytest.mark.parametrize("sizes", [{}, {"tied": "yes", "num_kv_heads": 0}, {"dropout": 0.3}])
@pytest.mark.parametrize("batch", [0, 3])
def test_gradients_against_central_differences(sizes: dict[str, Any], batch: int, check_gradients: Any) -> None:
    check_gradients(llama(**sizes), ids(batch), places=2)


@pytest.mark.parametrize("shards", [2, 3])
@pytest.mark.parametrize("sizes", [{}, {"tied": "yes", "dropout": 0.3}])
def test_shards_make_no_difference(shards: int, sizes: dict[str, Any], check_shards: Any) -> None:
    check_shards(llama(**sizes), ids(3), shards)
