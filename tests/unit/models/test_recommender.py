"""Recommenders: sizes, both interactions, two or three columns, gradients, shards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lepton_mpi.config.schema import ModelConfig
from lepton_mpi.errors import ConfigError
from lepton_mpi.models.family import DataShape, ModelSpec
from lepton_mpi.models.recommender import Recommender
from lepton_mpi.models.task import TASKS
from lepton_mpi.nn.module import Context

COUNTS = (11, 7)


def recommender(task: str = "regression", data: DataShape | None = None, **keys: Any) -> ModelSpec:
    data = data or DataShape((2,), id_counts=COUNTS)
    config = ModelConfig(**{"family": "recommender", "embedding_size": 3, "hidden_sizes": (6, 5), **keys})
    return Recommender().declare(config, TASKS[task], data)


def ids(batch: int, columns: int = 2) -> NDArray[np.int64]:
    random = np.random.default_rng(1)
    return np.stack([random.integers(0, COUNTS[min(column, 1)], batch) for column in range(columns)], axis=1)


def test_parameter_counts() -> None:
    assert recommender(interaction="product").num_parameters == (11 + 7) * (3 + 1) + 1
    assert recommender(interaction="mlp").num_parameters == (11 + 7) * 3 + (6 * 6 + 6) + (6 * 5 + 5) + (5 + 1)
    assert recommender(hidden_sizes=()).num_parameters == (11 + 7) * 3 + 6 + 1
    assert recommender(embedding_size=0, interaction="product").num_parameters == (11 + 7) * (32 + 1) + 1


@pytest.mark.parametrize(
    ("keys", "layers", "summary"),
    [
        ({"interaction": "product"}, 2, "recommender product, 11 users, 7 items, 3 features"),
        ({"interaction": "mlp"}, 4, "recommender mlp 6-6-5-1, 11 users, 7 items, 3 features"),
    ],
)
def test_what_is_declared(keys: dict[str, Any], layers: int, summary: str) -> None:
    for task, scores in (("regression", 1), ("binary", 1), ("ranking", 2)):
        model = recommender(task, **keys)
        assert (model.output_shape, model.max_stages) == ((scores,), layers)
        assert (model.input_kind, model.summary) == ("ids", summary)


def test_the_product_is_matrix_factorisation(build: Any) -> None:
    module, parameters = build(recommender("ranking", interaction="product"))
    for number, parameter in enumerate(parameters.values()):
        parameter.value[...] = np.random.default_rng(number).standard_normal(parameter.value.shape)
    p, q, user_bias, item_bias, bias = (parameter.value for parameter in parameters.values())
    x = ids(5, 3)
    y, _ = module.forward(x, Context())
    for column in (1, 2):
        user, item = x[:, 0], x[:, column]
        expected = (p[user] * q[item]).sum(1) + user_bias[user, 0] + item_bias[item, 0] + bias
        np.testing.assert_allclose(y[:, column - 1], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("interaction", ["product", "mlp"])
def test_a_ranking_model_scores_one_item_too(interaction: str, build: Any) -> None:
    module, _ = build(recommender("ranking", interaction=interaction), dtype=np.float64)
    x = ids(5, 3)
    both, _ = module.forward(x, Context())
    one, _ = module.forward(x[:, [0, 2]], Context())
    assert (both.shape, one.shape) == ((5, 2), (5, 1))
    np.testing.assert_allclose(one[:, 0], both[:, 1], rtol=1e-12)


@pytest.mark.parametrize("columns", [2, 3])
@pytest.mark.parametrize("keys", [{"interaction": "product"}, {}, {"hidden_sizes": (4,)}, {"hidden_sizes": ()}], ids=str)
def test_gradients_against_central_differences(keys: dict[str, Any], columns: int, check_gradients: Any) -> None:
    check_gradients(recommender("ranking", **keys), ids(6, columns), places=5)


@pytest.mark.parametrize("shards", [2, 3])
@pytest.mark.parametrize("keys", [{"interaction": "product"}, {}, {"hidden_sizes": (4,)}, {"hidden_sizes": ()}], ids=str)
def test_shards_make_no_difference(keys: dict[str, Any], shards: int, check_shards: Any) -> None:
    check_shards(recommender("ranking", **keys), ids(6, 3), shards)


@pytest.mark.parametrize("interaction", ["product", "mlp"])
def test_an_empty_batch(interaction: str, build: Any) -> None:
    module, parameters = build(recommender(interaction=interaction))
    y, saved = module.forward(ids(0), Context(training=True))
    dx, pending = module.backward_input(y, saved)
    module.backward_weight(pending)
    assert (y.shape, dx) == ((0, 1), None)
    assert not any(parameter.grad.any() for parameter in parameters.values())


def test_more_users_than_the_data_have() -> None:
    model = recommender(num_users=20, num_items=7)
    assert [spec.shape for spec in model.parameters[:2]] == [(20, 3), (7, 3)]
    without = DataShape((2,))
    assert recommender(data=without, num_users=4, num_items=5).parameters[0].shape == (4, 3)


@pytest.mark.parametrize(
    ("keys", "data", "message"),
    [
        ({"num_users": 10}, DataShape((2,), id_counts=COUNTS), "model.num_users: the data have numbers up to 10, .* at least 11"),
        ({"num_items": 6}, DataShape((2,), id_counts=COUNTS), "model.num_items: the data have numbers up to 6"),
        ({"num_items": 6}, DataShape((2,)), "model.num_users: the data do not say"),
        ({"num_users": 6}, DataShape((2,)), "model.num_items: the data do not say"),
        ({}, DataShape((3,), id_counts=(2, 2, 2)), "two columns"),
        ({}, DataShape((2,), 5, id_counts=COUNTS), "the labels have 5 values or classes"),
        ({}, DataShape((2,), 0, (4,), id_counts=COUNTS), "the labels have 4 values or classes"),
    ],
)
def test_sizes_that_do_not_fit(keys: dict[str, Any], data: DataShape, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recommender(data=data, **keys)
