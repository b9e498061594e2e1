"""GPT-2: what is declared, what is refused, gradients and shards."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from lepton_mpi.config.schema import ModelConfig
from lepton_mpi.errors import ConfigError
from lepton_mpi.models.family import DataShape, ModelSpec
from lepton_mpi.models.gpt import Gpt
from lepton_mpi.models.task import TASKS
from lepton_mpi.nn.module import Context

TOKENS, LENGTH = 23, 7
SMALL = {"width": 10, "num_layers": 2, "num_heads": 5, "context": 9}


def gpt(**sizes: Any) -> ModelSpec:
    config = ModelConfig(family="gpt", **{**SMALL, **sizes})
    return Gpt().declare(config, TASKS["language_model"], DataShape((LENGTH,), TOKENS))


def ids(batch: int) -> Any:
    return np.random.default_rng(0).integers(0, TOKENS, (batch, LENGTH))


def test_parameters_and_shapes() -> None:
    model = gpt()
    assert (model.input_kind, model.output_shape, len(model.layers)) == ("ids", (LENGTH, TOKENS), 4)
    assert model.summary == "gpt 2 layers, width 10, 5 heads, context 9, 23 tokens"
    shapes = {spec.name: spec.shape for spec in model.parameters}
    assert list(shapes)[:4] == ["embed.weight", "embed_positions.weight", "blocks.0.norm1.weight", "blocks.0.norm1.bias"]
    assert list(shapes)[-2:] == ["norm.weight", "norm.bias"]  # the output layer is the embedding
    assert shapes["embed.weight"] == (23, 10)
    assert shapes["embed_positions.weight"] == (9, 10)
    assert shapes["blocks.1.feed_forward.fc1.weight"] == (40, 10)
    assert model.num_parameters == 23 * 10 + 9 * 10 + 2 * (12 * 100 + 13 * 10) + 20
    assert model.max_shards == 5
    assert not any(layer.divided for layer in model.layers)


def test_an_output_layer_of_its_own() -> None:
    model = gpt(tied="no")
    assert model.parameters[-1].name == "head.weight"
    assert model.num_parameters == gpt().num_parameters + TOKENS * 10


def test_usual_sizes() -> None:
    model = Gpt().declare(ModelConfig(family="gpt"), TASKS["language_model"], DataShape((256,), 256))
    assert model.summary == "gpt 6 layers, width 384, 6 heads, context 256, 256 tokens"
    assert model.num_parameters == 2 * 256 * 384 + 6 * (12 * 384**2 + 13 * 384) + 2 * 384
    longer = Gpt().declare(ModelConfig(family="gpt", vocab_size=300), TASKS["language_model"], DataShape((999,), 256))
    assert "context 999, 300 tokens" in longer.summary
    assert longer.output_shape == (999, 300)


def test_initial_deviations() -> None:
    model = gpt(num_layers=8)
    deviation = {spec.name: getattr(spec.initial, "deviation", None) for spec in model.parameters}
    assert deviation["embed.weight"] == deviation["embed_positions.weight"] == 0.02
    assert deviation["blocks.3.attention.q_proj.weight"] == deviation["blocks.3.feed_forward.fc1.weight"] == 0.02
    for last in ("attention.o_proj", "feed_forward.fc2"):
        assert deviation[f"blocks.3.{last}.weight"] == pytest.approx(0.02 / math.sqrt(16))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"width": 11}, r"model\.width: expected a multiple of model\.num_heads = 5, got 11"),
        ({"context": 6}, r"model\.context: expected at least 7"),
        ({"vocab_size": 22}, r"model\.vocab_size: expected at least 23, the number of tokens in the data, got 22"),
        ({"num_kv_heads": 1}, r"model\.num_kv_heads: only llama"),
        ({"num_kv_heads": 2}, r"model\.num_kv_heads: expected a divisor"),
    ],
)
def test_sizes_that_do_not_fit(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        gpt(**sizes)


@pytest.mark.parametrize(
    ("data", "message"), [(DataShape((3, 3), 5), "shape .T,."), (DataShape((3,), 0), "the data do not tell it")]
)
def test_data_that_are_no_text(data: DataShape, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Gpt().declare(ModelConfig(family="gpt"), TASKS["language_model"], data)


@pytest.mark.parametrize("sizes", [{}, {"tied": "no"}, {"dropout": 0.3}])
@pytest.mark.parametrize("batch", [0, 3])
def test_gradients_against_central_differences(sizes: dict[str, Any], batch: int, check_gradients: Any) -> None:
    check_gradients(gpt(**sizes), ids(batch), places=2)


@pytest.mark.parametrize("shards", [2, 5])
@pytest.mark.parametrize("sizes", [{}, {"tied": "no", "dropout": 0.3}])
def test_shards_make_no_difference(shards: int, sizes: dict[str, Any], check_shards: Any) -> None:
    check_shards(gpt(**sizes), ids(3), shards)


def test_later_tokens_change_nothing_before_them(build: Any) -> None:
    module, _ = build(gpt())
    x = ids(1)
    other = x.copy()
    other[0, 4:] = (other[0, 4:] + 1) % TOKENS
    y, changed = module.forward(x, Context())[0], module.forward(other, Context())[0]
    np.testing.assert_array_equal(y[0, :4], changed[0, :4])
    assert (y[0, 4:] != changed[0, 4:]).any(axis=1).all()
