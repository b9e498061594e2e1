"""Pairs of users and items: look-up, product, gradients, rows over shards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lepton_mpi.errors import ConfigError, DataError
from lepton_mpi.nn.interaction import DotProduct, PairEmbedding
from lepton_mpi.nn.module import Context, Module
from lepton_mpi.nn.parameter import Parameter, cut_parameter
from lepton_mpi.nn.place import Alone

USERS, ITEMS, SIZE = 5, 7, 3
STEP = 1e-6


def ids(batch: int, columns: int) -> NDArray[np.int64]:
    random = np.random.default_rng(1)
    return np.stack([random.integers(0, ITEMS if column else USERS, batch) for column in range(columns)], axis=1)


def build(layer: Any, shards: int = 1, shard: int = 0) -> tuple[Module, dict[str, Parameter]]:
    parameters = {}
    for number, spec in enumerate(layer.parameters):
        block = cut_parameter(spec, shards, shard)
        whole = np.random.default_rng(number).standard_normal(spec.shape)
        value = whole[block.starts[0] : block.starts[0] + block.shape[0]].copy()
        parameters[spec.name] = Parameter(block, value, np.zeros_like(value))
    return layer.build(parameters, Alone()), parameters


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("columns", [2, 3])
def test_pairs_are_the_rows_of_user_and_item(columns: int, biases: bool) -> None:
    module, parameters = build(PairEmbedding("pairs", USERS, ITEMS, SIZE, biases=biases))
    x = ids(6, columns)
    y, _ = module.forward(x, Context())
    assert y.shape == (6, columns - 1, 2 * SIZE + biases)
    tables = {name: parameter.value for name, parameter in parameters.items()}
    for b, p in np.ndindex(6, columns - 1):
        user, item = x[b, 0], x[b, 1 + p]
        expected = [*tables["user_embedding.weight"][user], *tables["item_embedding.weight"][item]]
        if biases:
            expected.append(tables["user_bias.weight"][user, 0] + tables["item_bias.weight"][item, 0])
        np.testing.assert_allclose(y[b, p], expected)


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("batch", [0, 1, 7])
@pytest.mark.parametrize("columns", [2, 3])
def test_gradients_against_central_differences(columns: int, batch: int, biases: bool) -> None:
    embed, embed_parameters = build(PairEmbedding("pairs", USERS, ITEMS, SIZE, biases=biases))
    score, score_parameters = build(DotProduct("score", SIZE, biases=biases))
    x = ids(batch, columns)

    def forward() -> tuple[NDArray[Any], Any, Any]:
        pairs, saved = embed.forward(x, Context())
        y, kept = score.forward(pairs, Context())
        return y, saved, kept

    y, saved, kept = forward()
    assert y.shape == (batch, columns - 1)
    dy = np.random.default_rng(2).standard_normal(y.shape)
    dpairs, pending = score.backward_input(dy, kept)
    score.backward_weight(pending)
    dx, pending = embed.backward_input(dpairs, saved)
    embed.backward_weight(pending)
    assert dx is None
    for parameter in {**embed_parameters, **score_parameters}.values():
        for at in np.ndindex(parameter.value.shape):
            value = parameter.value[at]
            ends = []
            for moved in (value + STEP, value - STEP):
                parameter.value[at] = moved
                ends.append(float((forward()[0] * dy).sum()))
            parameter.value[at] = value
            assert parameter.grad[at] == pytest.approx((ends[0] - ends[1]) / (2 * STEP), rel=1e-6, abs=1e-8)


def test_float32_agrees_with_float64() -> None:
    """The native gradient of the tables against the NumPy one."""
    layer, x = PairEmbedding("pairs", USERS, ITEMS, SIZE, biases=True), ids(50, 3)
    (wide, wide_parameters), (_, parameters) = build(layer), build(layer)
    parameters = {n: Parameter(p.block, p.value.astype(np.float32), p.grad.astype(np.float32)) for n, p in parameters.items()}
    narrow = layer.build(parameters, Alone())
    for module, dtype in ((wide, np.float64), (narrow, np.float32)):
        y, saved = module.forward(x, Context())
        module.backward_weight(module.backward_input(np.cos(np.arange(y.size)).reshape(y.shape).astype(dtype), saved)[1])
        assert y.dtype == dtype
    for name in parameters:
        np.testing.assert_allclose(parameters[name].grad, wide_parameters[name].grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shards", [2, 3, 5])
def test_shards_add_up_to_the_whole(shards: int) -> None:
    layer, x = PairEmbedding("pairs", USERS, ITEMS, SIZE, pairs=2, biases=True), ids(6, 3)
    whole, parameters = build(layer)
    y, saved = whole.forward(x, Context())
    whole.backward_weight(whole.backward_input(y, saved)[1])
    total, gradients = np.zeros_like(y), {name: [] for name in parameters}
    for shard in range(shards):
        module, parts = build(layer, shards, shard)
        part, kept = module.forward(x, Context())
        module.backward_weight(module.backward_input(y, kept)[1])
        total += part
        for name, parameter in parts.items():
            gradients[name].append(parameter.grad)
    np.testing.assert_allclose(total, y)
    for name, parts in gradients.items():
        np.testing.assert_array_equal(np.concatenate(parts), parameters[name].grad)


def test_declared_shapes_and_names() -> None:
    layer = PairEmbedding("pairs", USERS, ITEMS, SIZE, pairs=2, biases=True)
    names = ["user_embedding.weight", "item_embedding.weight", "user_bias.weight", "item_bias.weight"]
    assert [spec.name for spec in layer.parameters] == names
    assert [spec.shape for spec in layer.parameters] == [(USERS, SIZE), (ITEMS, SIZE), (USERS, 1), (ITEMS, 1)]
    assert layer.output(((2,),)) == layer.output(((3,),)) == ((2, 2 * SIZE + 1),)
    assert layer.output(((101,),)) == ((100, 2 * SIZE + 1),)
    assert DotProduct("score", SIZE, biases=True).output(((2, 2 * SIZE + 1),)) == ((2,),)
    assert DotProduct("score", SIZE).cost(((2, 2 * SIZE),)) == 2 * SIZE


@pytest.mark.parametrize("shape", [(0,), (1,), (2, 2)])
def test_other_columns_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="expected samples of 2 columns"):
        PairEmbedding("pairs", USERS, ITEMS, SIZE, pairs=2).output((shape,))
    with pytest.raises(ConfigError, match="expected samples of 2 columns"):
        PairEmbedding("pairs", USERS, ITEMS, SIZE).output(((3,),))
    with pytest.raises(ConfigError, match="layer score: expected samples of shape"):
        DotProduct("score", SIZE).output((shape,))


@pytest.mark.parametrize(("pair", "what"), [((USERS, 0), "users"), ((-1, 0), "users"), ((0, ITEMS), "items"), ((0, -2), "items")])
def test_numbers_without_a_row_are_refused(pair: tuple[int, int], what: str) -> None:
    module, _ = build(PairEmbedding("pairs", USERS, ITEMS, SIZE))
    with pytest.raises(DataError, match=f"expected numbers of {what} in"):
        module.forward(np.array([[0, 0], pair]), Context())


def test_no_gradient_of_the_pairs_where_nobody_needs_it() -> None:
    module, parameters = build(DotProduct("score", SIZE))
    _, saved = module.forward(np.ones((2, 1, 2 * SIZE)), Context())
    dx, pending = module.backward_input(np.ones((2, 1)), saved, want_dx=False)
    module.backward_weight(pending)
    assert dx is None
    assert parameters["score.bias"].grad == 2
