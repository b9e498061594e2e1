"""BERT: what both tasks declare, what is refused, padding, gradients and shards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lepton_mpi.config.schema import ModelConfig
from lepton_mpi.errors import ConfigError
from lepton_mpi.models.bert import Bert
from lepton_mpi.models.family import DataShape, ModelSpec
from lepton_mpi.models.task import TASKS
from lepton_mpi.nn.module import Context

TOKENS, LENGTH, CLASSES = 23, 7, 3
SMALL = {"width": 15, "num_layers": 2, "num_heads": 3, "intermediate_size": 11, "context": 9}
TASK_NAMES = ("classification", "masked_language_model")


def bert(task: str, counts: tuple[int, ...] = (TOKENS,), **sizes: Any) -> ModelSpec:
    config = ModelConfig(family="bert", **{**SMALL, **sizes})
    data = DataShape((LENGTH,), CLASSES, id_counts=counts) if task == "classification" else DataShape((LENGTH,), TOKENS)
    return Bert().declare(config, TASKS[task], data)


def ids(batch: int) -> Any:
    return np.random.default_rng(0).integers(1, TOKENS, (batch, LENGTH))


def test_what_both_tasks_declare() -> None:
    classifier, masked = bert("classification"), bert("masked_language_model")
    assert (classifier.output_shape, masked.output_shape) == ((CLASSES,), (LENGTH, TOKENS))
    block = 4 * (15 * 15 + 15) + 2 * 11 * 15 + 11 + 15 + 4 * 15
    encoder = (TOKENS + 9 + 2 + 2) * 15 + 2 * block
    assert classifier.num_parameters == encoder + 15 * 15 + 15 + CLASSES * 15 + CLASSES
    assert masked.num_parameters == encoder + 15 * 15 + 15 + 2 * 15 + TOKENS
    assert [spec.name for spec in classifier.parameters][:5] == [
        "embed.weight",
        "embed_positions.weight",
        "embed_types.weight",
        "embed_norm.weight",
        "embed_norm.bias",
    ]
    for model in (classifier, masked):
        assert (model.input_kind, len(model.layers), model.max_shards, model.pad_id) == ("ids", 4, 3, None)
        assert model.summary == "bert 2 layers, width 15, 3 heads, context 9, 23 tokens"
        assert not any(layer.divided for layer in model.layers)
    assert bert("masked_language_model", tied="no").num_parameters == masked.num_parameters + TOKENS * 15


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"width": 16}, r"model\.width: expected a multiple"),
        ({"context": 6}, r"model\.context: expected at least 7"),
        ({"vocab_size": 22}, r"model\.vocab_size: expected at least 23, the number of tokens in the data"),
        ({"counts": ()}, r"model\.vocab_size: expected at least 1, since the data do not tell it, got 0"),
        ({"pad_token": 23}, r"model\.pad_token: expected one of the 23 tokens or -1, got 23"),
        ({"num_kv_heads": 1}, r"model\.num_kv_heads: only llama"),
    ],
)
def test_sizes_that_do_not_fit(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bert("classification", **sizes)


@pytest.mark.parametrize("task", TASK_NAMES)
@pytest.mark.parametrize("batch", [0, 3])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_against_central_differences(task: str, batch: int, dropout: float, check_gradients: Any) -> None:
    x = ids(batch)
    x[1:2, 4:] = 0
    context = Context(training=True, num_global=max(batch, 1), key_mask=x != 0)
    check_gradients(bert(task, pad_token=0, dropout=dropout), x, context, places=2)


@pytest.mark.parametrize("task", TASK_NAMES)
@pytest.mark.parametrize("shards", [2, 3])
def test_shards_make_no_difference(task: str, shards: int, check_shards: Any) -> None:
    check_shards(bert(task, dropout=0.3), ids(3), shards)


@pytest.mark.parametrize("task", TASK_NAMES)
def test_what_stands_at_padding_does_not_matter(task: str, build: Any) -> None:
    model = bert(task, pad_token=0)
    assert model.pad_id == 0
    module, _ = build(model)
    x = ids(2)
    mask = np.ones(x.shape, bool)
    mask[1, 5:] = False
    other = x.copy()
    other[1, 5:] = 1
    other[1, 6] = 2
    y, changed = (module.forward(tokens, Context(key_mask=mask))[0] for tokens in (x, other))
    if task == "classification":
        np.testing.assert_array_equal(y, changed)
    else:
        np.testing.assert_array_equal(y[mask], changed[mask])
    assert (module.forward(other, Context())[0][1] != y[1]).any()  # without the mask it does
