"""Norms, activations, feed-forwards, embeddings and dropout as layers: gradients, shards, no rows, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from lepton_mpi.errors import ConfigError, DataError
from lepton_mpi.nn.activation import Gelu, Silu
from lepton_mpi.nn.dropout import Dropout
from lepton_mpi.nn.embedding import Embedding, LearnedPositions, ZeroRow
from lepton_mpi.nn.feed_forward import FeedForward
from lepton_mpi.nn.initial import Normal
from lepton_mpi.nn.layer_norm import LayerNorm
from lepton_mpi.nn.module import Context
from lepton_mpi.nn.parameter import Parameter, cut_parameter, initial_values
from lepton_mpi.nn.place import Alone
from lepton_mpi.nn.rms_norm import RMSNorm
from lepton_mpi.nn.swiglu import SwiGLU
from lepton_mpi.runtime.random import random_key

TRAINING = Context(training=True, step=3, first_row=5)
STEP = 1e-6
LAYERS = {
    "gelu": Gelu("g"),
    "gelu_tanh": Gelu("g", approximate=True, divides=True),
    "silu": Silu("s", divides=True),
    "layer_norm": LayerNorm("n", 6),
    "layer_norm without bias": LayerNorm("n", 6, bias=False),
    "rms_norm": RMSNorm("n", 6),
    "dropout": Dropout("d", 0.3),
    "positions": LearnedPositions("p", 7, 6, offset=2),
    "swiglu": SwiGLU("mlp", 6, 5),
    "feed_forward gelu": FeedForward("mlp", 6, 5),
    "feed_forward gelu_tanh": FeedForward("mlp", 6, 5, "gelu_tanh", "c_fc", "c_proj"),
    "feed_forward relu": FeedForward("mlp", 6, 5, "relu", bias=False),
}
all_layers = pytest.mark.parametrize("name", LAYERS)


def make_parameters(layer, shards=1, shard=0):
    """Random blocks in float64, the same global values for any shard."""
    parameters = {}
    for spec in layer.parameters:
        block = cut_parameter(spec, shards, shard)
        whole = np.random.default_rng(len(spec.name)).standard_normal(spec.shape)
        value = whole[tuple(slice(s, s + n) for s, n in zip(block.starts, block.shape, strict=True))].copy()
        parameters[spec.name] = Parameter(block, value, np.zeros(block.shape))
    return parameters


@all_layers
def test_gradients_against_central_differences(name):
    layer = LAYERS[name]
    parameters = make_parameters(layer)
    module = layer.build(parameters, Alone())
    x, dy = np.random.default_rng(1).standard_normal((2, 2, 3, 6))
    kept_x, kept_dy = x.copy(), dy.copy()
    y, saved = module.forward(x, TRAINING)
    assert layer.output((x.shape[1:],)) == (y.shape[1:],)
    dx, pending = module.backward_input(dy, saved)
    module.backward_weight(pending)
    np.testing.assert_array_equal(x, kept_x)
    np.testing.assert_array_equal(dy, kept_dy)
    for array, grad in ((x, dx), *((p.value, p.grad) for p in parameters.values())):
        for index in np.ndindex(array.shape):
            kept = array[index]
            ends = []
            for array[index] in (kept + STEP, kept - STEP):
                ends.append(float((module.forward(x, TRAINING)[0] * dy).sum()))
            array[index] = kept
            assert grad[index] == pytest.approx((ends[0] - ends[1]) / (2 * STEP), rel=1e-5, abs=1e-7)


@all_layers
def test_gradients_add_up_and_need_no_dx(name):
    layer = LAYERS[name]
    parameters = make_parameters(layer)
    module = layer.build(parameters, Alone())
    x, dy = np.random.default_rng(2).standard_normal((2, 4, 3, 6))
    for want_dx in (True, False):
        dx, pending = module.backward_input(dy, module.forward(x, TRAINING)[1], want_dx)
        assert (dx is not None) == want_dx
        module.backward_weight(pending)
        if want_dx:
            once = {name: p.grad.copy() for name, p in parameters.items()}
    for key, parameter in parameters.items():
        np.testing.assert_allclose(parameter.grad, 2 * once[key], rtol=1e-12, atol=1e-12)


@all_layers
def test_no_rows(name):
    layer = LAYERS[name]
    parameters = make_parameters(layer)
    module = layer.build(parameters, Alone())
    y, saved = module.forward(np.zeros((0, 3, 6)), TRAINING)
    dx, pending = module.backward_input(y, saved)
    module.backward_weight(pending)
    assert y.shape == dx.shape == (0, 3, 6)
    assert not any(p.grad.any() for p in parameters.values())


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu"])
def test_activations_have_a_gradient_outside_of_training_too(name):
    module = LAYERS[name].build({}, Alone())
    x, dy = np.random.default_rng(3).standard_normal((2, 2, 6))
    (y, saved), (same, kept) = module.forward(x, TRAINING), module.forward(x, Context())
    np.testing.assert_array_equal(y, same)
    np.testing.assert_array_equal(module.backward_input(dy, saved)[0], module.backward_input(dy, kept)[0])


@pytest.mark.parametrize("name", ["swiglu", "feed_forward gelu", "feed_forward relu"])
def test_shards_add_up_to_the_whole(name):
    layer = LAYERS[name]
    x, dy = np.random.default_rng(4).standard_normal((2, 2, 3, 6))
    whole_parameters = make_parameters(layer)
    whole = layer.build(whole_parameters, Alone())
    y, saved = whole.forward(x, TRAINING)
    dx, pending = whole.backward_input(dy, saved)
    whole.backward_weight(pending)
    parts = []
    for shard in range(2):
        parameters = make_parameters(layer, 2, shard)
        module = layer.build(parameters, Alone(2, shard))  # its sums are identities: each shard's own term
        if shard == 1 and "mlp.fc2.bias" in parameters:
            parameters["mlp.fc2.bias"].value[...] = 0  # added once, after the sum
        part, saved = module.forward(x, TRAINING)
        dx_part, pending = module.backward_input(dy, saved)
        module.backward_weight(pending)
        parts.append((part, dx_part))
        for spec in layer.parameters:
            block = parameters[spec.name].block
            cut = tuple(slice(s, s + n) for s, n in zip(block.starts, block.shape, strict=True))
            np.testing.assert_allclose(parameters[spec.name].grad, whole_parameters[spec.name].grad[cut], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(parts[0][0] + parts[1][0], y, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(parts[0][1] + parts[1][1], dx, rtol=1e-10, atol=1e-12)


def test_names_decay_and_cost():
    swiglu, feed_forward = LAYERS["swiglu"], LAYERS["feed_forward gelu_tanh"]
    assert [spec.name for spec in swiglu.parameters] == ["mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"]
    assert [spec.name for spec in feed_forward.parameters] == [
        f"mlp.{part}.{what}" for part in ("c_fc", "c_proj") for what in ("weight", "bias")
    ]
    assert not any(spec.decay for spec in (*LAYERS["layer_norm"].parameters, *LAYERS["rms_norm"].parameters))
    assert Embedding("e", 5, 3).parameters[0].decay
    assert (swiglu.cost(((4, 6),)), feed_forward.cost(((4, 6),))) == (4 * 3 * 6 * 5, 4 * 2 * 6 * 5)
    assert [LAYERS[name].divided for name in ("gelu", "gelu_tanh", "silu", "swiglu")] == [False, True, True, False]
    (values,) = (initial_values(cut_parameter(spec, 1, 0), 0) for spec in LAYERS["rms_norm"].parameters)
    assert (values == 1).all()


def test_dropout_follows_the_global_batch():
    module = Dropout("d", 0.5).build({}, Alone(seed=4))
    x = np.ones((6, 4, 5), np.float32)
    y, _ = module.forward(x, Context(training=True, step=2, first_row=10))
    later, _ = module.forward(x[2:], Context(training=True, step=2, first_row=12))
    np.testing.assert_array_equal(later, y[2:])
    for other in (
        module.forward(x, Context(training=True, step=3, first_row=10))[0],
        Dropout("e", 0.5).build({}, Alone(seed=4)).forward(x, Context(training=True, step=2, first_row=10))[0],
        Dropout("d", 0.5).build({}, Alone(seed=5)).forward(x, Context(training=True, step=2, first_row=10))[0],
    ):
        assert (other != y).any()


@pytest.mark.parametrize(("rate", "training"), [(0.0, True), (0.5, False)])
def test_dropout_is_the_identity_where_nothing_is_dropped(rate, training):
    module = Dropout("d", rate).build({}, Alone())
    x = np.ones((2, 3))
    y, saved = module.forward(x, Context(training=training))
    assert y is x
    assert module.backward_input(x, saved)[0] is x


@pytest.mark.parametrize("shape", [(3,), (2, 5), (0, 5)])
@pytest.mark.parametrize("shards", [1, 3])
def test_embedding_of_shards(shape, shards):
    layer = Embedding("e", 7, 4)
    ids = np.random.default_rng(5).integers(0, 7, shape)
    dy = np.random.default_rng(6).standard_normal((*shape, 4))
    table = make_parameters(layer)["e.weight"].value
    total, grads = np.zeros((*shape, 4)), []
    for shard in range(shards):
        parameters = make_parameters(layer, shards, shard)
        module = layer.build(parameters, Alone(shards, shard))
        y, saved = module.forward(ids, TRAINING)
        total += y
        dx, pending = module.backward_input(dy, saved)
        assert dx is None
        module.backward_weight(pending)
        grads.append(parameters["e.weight"].grad)
    np.testing.assert_array_equal(total, table[ids])
    expected = np.zeros((7, 4))
    np.add.at(expected, ids, dy)
    np.testing.assert_allclose(np.concatenate(grads), expected, rtol=1e-12)
    assert layer.output((shape[1:],)) == ((*shape[1:], 4),)


@pytest.mark.parametrize("shards", [1, 3])
def test_padding_is_zero_and_stays_so(shards):
    layer = Embedding("e", 7, 4, padding=3)
    (spec,) = layer.parameters
    whole = np.concatenate([initial_values(cut_parameter(spec, shards, shard), 1) for shard in range(shards)])
    assert not whole[3].any()
    np.testing.assert_array_equal(
        np.delete(whole, 3, 0), np.delete(Normal(0.02).draw(random_key(1, "init", "e.weight"), 0, 28).reshape(7, 4), 3, 0)
    )
    ids = np.array([[3, 1], [3, 3]])
    kept = ids.copy()
    grads = []
    for shard in range(shards):
        parameters = make_parameters(layer, shards, shard)
        module = layer.build(parameters, Alone(shards, shard))
        module.backward_weight(module.backward_input(np.ones((2, 2, 4)), module.forward(ids, TRAINING)[1])[1])
        grads.append(parameters["e.weight"].grad)
    expected = np.zeros((7, 4))
    expected[1] = 1
    np.testing.assert_array_equal(np.concatenate(grads), expected)
    np.testing.assert_array_equal(ids, kept)


@pytest.mark.parametrize(("start", "count"), [(0, 6), (5, 9), (8, 1), (14, 3), (6, 6)])
def test_a_zero_row_in_any_range(start, count):
    whole = ZeroRow(Normal(1.0), 2, 4).draw(5, 0, 28)
    np.testing.assert_array_equal(ZeroRow(Normal(1.0), 2, 4).draw(5, start, count), whole[start : start + count])
    assert np.flatnonzero(whole == 0).tolist() == [8, 9, 10, 11]


@pytest.mark.parametrize("bad", [-1, 7, 2**40])
def test_an_id_outside_of_the_vocabulary_is_a_data_error(bad):
    layer = Embedding("e", 7, 4)
    for shard in range(2):
        module = layer.build(make_parameters(layer, 2, shard), Alone(2, shard))
        with pytest.raises(DataError, match=rf"e\.weight: expected ids in \[0, 7\), received {bad}:"):
            module.forward(np.array([[1, bad]]), TRAINING)


def test_shapes_that_do_not_fit():
    for layer in (LayerNorm("n", 6), RMSNorm("n", 6), SwiGLU("n", 6, 5), FeedForward("n", 6, 5), LearnedPositions("n", 7, 6)):
        with pytest.raises(ConfigError, match="layer n: expected samples of shape"):
            layer.output(((3, 5),))
    with pytest.raises(ConfigError, match="layer p: expected at most 7 positions, got 8"):
        LearnedPositions("p", 7, 6).output(((8, 6),))
    with pytest.raises(ConfigError, match="layer e: expected one array of ids, got 2"):
        Embedding("e", 7, 4).output(((3,), (3,)))


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu"])
def test_feed_forward_against_torch(activation):
    torch = pytest.importorskip("torch")
    layer = FeedForward("mlp", 6, 10, activation)
    parameters = make_parameters(layer)
    x = np.random.default_rng(7).standard_normal((2, 3, 6))
    first, first_bias, second, second_bias = (torch.tensor(p.value) for p in parameters.values())
    act = {"relu": torch.relu, "gelu": torch.nn.functional.gelu}.get(
        activation, lambda x: torch.nn.functional.gelu(x, approximate="tanh")
    )
    expected = act(torch.tensor(x) @ first.T + first_bias) @ second.T + second_bias
    y, _ = layer.build(parameters, Alone()).forward(x, Context())
    np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-12)
