"""Layers on sequences of tokens: the first token, token types, and the hyperbolic tangent."""

import numpy as np
import pytest
from alone import assert_gradients, build_alone

from lepton_mpi.errors import ConfigError
from lepton_mpi.nn.first_token import FirstToken
from lepton_mpi.nn.module import Context
from lepton_mpi.nn.tanh import Tanh
from lepton_mpi.nn.token_types import TokenTypes
from lepton_mpi.ops.tanh import tanh, tanh_backward

CONTEXT = Context(training=True)
LAYERS = [FirstToken("first"), TokenTypes("types", 2, 5), Tanh("tanh")]


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_gradients_against_central_differences(layer, batch):
    assert_gradients(layer, np.random.default_rng(1).standard_normal((batch, 7, 5)), CONTEXT)


def test_the_first_token():
    x = np.arange(30.0).reshape(2, 3, 5)
    np.testing.assert_array_equal(
        build_alone(FirstToken("first"))[0].forward(x, CONTEXT)[0], [[0, 1, 2, 3, 4], [15, 16, 17, 18, 19]]
    )


def test_every_token_is_of_the_first_type():
    layer = TokenTypes("types", 3, 5)
    assert [(spec.name, spec.shape, spec.split_dim) for spec in layer.parameters] == [("types.weight", (3, 5), None)]
    module, parameters = build_alone(layer)
    x = np.ones((2, 7, 5))
    y, saved = module.forward(x, CONTEXT)
    np.testing.assert_array_equal(y, x + parameters["types.weight"].value[0])
    module.backward_weight(module.backward_input(y, saved)[1])
    assert not parameters["types.weight"].grad[1:].any()
    np.testing.assert_allclose(parameters["types.weight"].grad[0], y.sum(axis=(0, 1)))


def test_tanh_of_extreme_values_keeps_the_dtype():
    x = np.array([-100, -1, 0, 1, 100], np.float32)
    y = tanh(x)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, [-1, -0.76159416, 0, 0.76159416, 1], rtol=1e-6)
    np.testing.assert_allclose(tanh_backward(np.ones_like(x), y), [0, 0.41997434, 1, 0.41997434, 0], rtol=1e-5)


@pytest.mark.parametrize(("layer", "shape"), [(FirstToken("first"), (5,)), (TokenTypes("types", 2, 5), (7, 4))])
def test_inputs_of_other_shapes_are_refused(layer, shape):
    with pytest.raises(ConfigError, match=f"layer {layer.name}: expected samples of shape"):
        layer.output((shape,))


def test_gradients_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="dy: expected shape"):
        tanh_backward(np.ones(3), np.ones(4))
