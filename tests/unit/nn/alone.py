"""Layers on one rank with random parameters, and their gradients against central differences."""

import numpy as np
import pytest

from lepton_mpi.nn.layer import Layer
from lepton_mpi.nn.module import Context, Module
from lepton_mpi.nn.parameter import Parameter, cut_parameter
from lepton_mpi.nn.place import Alone, Place

STEP = 1e-6


def make_parameters(layer: Layer, dtype=np.float64, seed=0) -> dict[str, Parameter]:
    """Return positive random values for all parameters, and zero gradients."""
    random = np.random.default_rng(seed)
    return {
        spec.name: Parameter(
            cut_parameter(spec, 1, 0), random.uniform(0.5, 1.5, spec.shape).astype(dtype), np.zeros(spec.shape, dtype)
        )
        for spec in layer.parameters
    }


def build_alone(layer: Layer, dtype=np.float64, place: Place | None = None) -> tuple[Module, dict[str, Parameter]]:
    """Return a layer at work and its parameters."""
    parameters = make_parameters(layer, dtype)
    return layer.build(parameters, place or Alone()), parameters


def assert_gradients(layer: Layer, x: np.ndarray, context: Context) -> None:
    """Compare all gradients with central differences, and the output's shape with the declared one."""
    module, parameters = build_alone(layer)
    y, saved = module.forward(x, context)
    assert (y.shape[1:],) == layer.output((x.shape[1:],))
    dy = np.random.default_rng(7).standard_normal(y.shape)
    dx, pending = module.backward_input(dy, saved)
    module.backward_weight(pending)
    none, pending = module.backward_input(dy, module.forward(x, context)[1], want_dx=False)
    assert none is None
    once = {name: parameter.grad.copy() for name, parameter in parameters.items()}
    module.backward_weight(pending)  # adds the same again
    for name, parameter in parameters.items():
        np.testing.assert_allclose(parameter.grad, 2 * once[name], rtol=1e-12, atol=1e-14)

    x = x.copy()
    weights = [p for p in parameters.values() if p.block.spec.role == "weight"]
    for array, grad in [(x, dx), *((p.value, once[p.block.name]) for p in weights)]:
        for place in np.ndindex(array.shape):
            kept, ends = array[place], []
            for value in (kept + STEP, kept - STEP):
                array[place] = value
                ends.append(float((module.forward(x, context)[0] * dy).sum()))
            array[place] = kept
            assert grad[place] == pytest.approx((ends[0] - ends[1]) / (2 * STEP), rel=1e-5, abs=1e-7)
