"""Skips that travel along as tuples: shapes, values, gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lepton_mpi.errors import ConfigError
from lepton_mpi.nn.chain import Chain
from lepton_mpi.nn.layer import Layer
from lepton_mpi.nn.linear import Linear
from lepton_mpi.nn.module import Context, Module
from lepton_mpi.nn.parameter import Parameter, cut_parameter, initial_values
from lepton_mpi.nn.place import Alone
from lepton_mpi.nn.skip import Down, PassBy, Up

STEP = 1e-6
# (5) down to 4, 3 and 2 with skips of 4 and 3 features, and up again.
DOWN = (Down("a", Linear("a.body", 5, 4), Linear("a.pool", 4, 3)), Down("b", Linear("b.body", 3, 3), Linear("b.pool", 3, 2)))
BOTTOM = PassBy("c", Linear("c.body", 2, 6))
UP = (Up("d", Linear("d.up", 6, 2), Linear("d.body", 5, 7)), Up("e", Linear("e.up", 7, 1), Linear("e.body", 5, 2)))
WHOLE = Chain("net", (*DOWN, BOTTOM, *UP))


def build(layer: Layer) -> tuple[Module, dict[str, Parameter]]:
    parameters = {}
    for spec in layer.parameters:
        block = cut_parameter(spec, 1, 0)
        value = initial_values(block, 1).astype(np.float64)
        parameters[spec.name] = Parameter(block, value, np.zeros_like(value))
    return layer.build(parameters, Alone()), parameters


def test_shapes_grow_on_the_way_down_and_shrink_on_the_way_up() -> None:
    shapes: Any = ((5,),)
    seen = []
    for layer in WHOLE.layers:
        shapes = layer.output(shapes)
        seen.append(shapes)
    assert seen == [((3,), (4,)), ((2,), (3,), (4,)), ((6,), (3,), (4,)), ((7,), (4,)), ((2,),)]
    assert WHOLE.cost(((5,),)) == 5 * 4 + 4 * 3 + 3 * 3 + 3 * 2 + 2 * 6 + 6 * 2 + 5 * 7 + 7 * 1 + 5 * 2
    assert [spec.name for spec in WHOLE.parameters][:4] == ["a.body.weight", "a.body.bias", "a.pool.weight", "a.pool.bias"]


def test_values() -> None:
    (module, parameters), x = build(DOWN[0]), np.ones((2, 5))
    (y, skip), _ = module.forward(x, Context())
    np.testing.assert_allclose(skip, x @ parameters["a.body.weight"].value.T)
    np.testing.assert_allclose(y, skip @ parameters["a.pool.weight"].value.T)

    module, parameters = build(UP[1])
    x, skip, other = np.ones((2, 7)), np.full((2, 4), 2.0), np.zeros((2, 9))
    (y, passed), _ = module.forward((x, skip, other), Context())
    joined = np.concatenate([x @ parameters["e.up.weight"].value.T, skip], axis=1)
    np.testing.assert_allclose(y, joined @ parameters["e.body.weight"].value.T)
    assert passed is other


@pytest.mark.parametrize("batch", [0, 3])
def test_gradients_against_central_differences(batch: int) -> None:
    module, parameters = build(WHOLE)
    x = np.random.default_rng(2).standard_normal((batch, 5))
    y, saved = module.forward(x, Context())
    dy = np.random.default_rng(3).standard_normal(y.shape)
    dx, pending = module.backward_input(dy, saved)
    module.backward_weight(pending)
    assert (y.shape, dx.shape) == ((batch, 2), (batch, 5))
    for array, grad in [(x, dx), *((parameter.value, parameter.grad) for parameter in parameters.values())]:
        for at in np.ndindex(array.shape):
            kept = array[at]
            ends = []
            for value in (kept + STEP, kept - STEP):
                array[at] = value
                ends.append(float((module.forward(x, Context())[0] * dy).sum()))
            array[at] = kept
            assert grad[at] == pytest.approx((ends[0] - ends[1]) / (2 * STEP), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("layer", [DOWN[0], BOTTOM, UP[0]], ids=["down", "pass", "up"])
def test_no_gradient_of_the_input_where_nobody_needs_it(layer: Layer) -> None:
    (module, one), (again, other) = build(layer), build(layer)
    x: Any = np.ones((2, layer.parameters[0].shape[1]))
    if layer is UP[0]:
        x = (x, np.ones((2, 3)))
    y, saved = module.forward(x, Context())
    dy = tuple(np.ones_like(part) for part in y) if isinstance(y, tuple) else np.ones_like(y)
    dx, pending = module.backward_input(dy, saved, want_dx=False)
    module.backward_weight(pending)
    again.backward_weight(again.backward_input(dy, again.forward(x, Context())[1])[1])
    assert dx is None
    for name in one:
        np.testing.assert_array_equal(one[name].grad, other[name].grad)
        assert one[name].grad.any()


def test_a_single_array_is_bare_and_several_are_a_tuple() -> None:
    module, _ = build(BOTTOM)
    x, skip = np.ones((2, 2)), np.ones((2, 3))
    y, saved = module.forward(x, Context())
    assert y.shape == (2, 6)
    assert module.backward_input(y, saved)[0].shape == x.shape
    y, saved = module.forward((x, skip), Context())
    assert y[1] is skip
    dx, dskip = module.backward_input(y, saved)[0]
    assert dx.shape == x.shape
    assert dskip is y[1]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="layer d: expected an array and a skip"):
        UP[0].output(((6,),))
    rise = Up("up", Linear("up.up", 6, 2), Linear("up.body", 5, 7))
    with pytest.raises(ConfigError, match="layer up: what comes up has shape"):
        rise.output(((4, 4, 6), (8, 4, 3)))
