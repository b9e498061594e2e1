"""The fully connected layer against central differences, in both orders of its backward halves."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from lepton_mpi.errors import ConfigError
from lepton_mpi.nn.linear import Linear, LinearModule
from lepton_mpi.nn.module import Context
from lepton_mpi.nn.move import AddParts, Move, Replicate, Stay
from lepton_mpi.nn.parameter import Parameter, ParameterSpec, cut_parameter

BATCH, INPUTS, OUTPUTS = 4, 5, 3
STEP = 1e-6
CONTEXT = Context(training=True)


class DoubleEntering(Move):
    """A movement with an effect, so that a forgotten adjoint is seen; the gradients of the copies come in a list."""

    def forward(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return 2 * x

    def adjoint(self, dy: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        return 2 * sum(dy)


class Double(Move):
    """Another."""

    def forward(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return 2 * x

    def adjoint(self, dy: NDArray[np.float64]) -> NDArray[np.float64]:
        return 2 * dy


class FirstColumns(Move):
    """Keep the first columns: not square, so that a shape that is wrong is seen."""

    def forward(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return x[:, : OUTPUTS - 1]

    def adjoint(self, dy: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate([dy, np.zeros((len(dy), 1))], axis=1)


def make_layer(relu: bool, enter: Move, reduce: Move, leave: Move) -> LinearModule:
    random = np.random.default_rng(4)
    weight, bias = (
        cut_parameter(ParameterSpec(name, shape), 1, 0) for name, shape in (("w", (OUTPUTS, INPUTS)), ("b", (OUTPUTS,)))
    )
    return LinearModule(
        Parameter(weight, random.standard_normal(weight.shape), np.zeros(weight.shape)),
        Parameter(bias, random.standard_normal(bias.shape), np.zeros(bias.shape)),
        relu,
        enter,
        reduce,
        leave,
    )


MOVES = [
    (Replicate(), AddParts(), Stay()),
    (DoubleEntering(), AddParts(), Stay()),
    (Replicate(), AddParts(), FirstColumns()),
    (DoubleEntering(), AddParts(), Double()),
]


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("moves", MOVES, ids=["stay", "enter", "leave", "both"])
def test_gradients_against_central_differences(relu: bool, moves: tuple[Move, Move, Move]) -> None:
    layer = make_layer(relu, *moves)
    x = np.random.default_rng(5).standard_normal((BATCH, INPUTS))
    y, saved = layer.forward(x, CONTEXT)
    dy = np.random.default_rng(6).standard_normal(y.shape)
    dx, pending = layer.backward_input(dy, saved)
    layer.backward_weight(pending)

    def slope(array: NDArray[np.float64], place: tuple[int, ...]) -> float:
        kept = array[place]
        ends = []
        for value in (kept + STEP, kept - STEP):
            array[place] = value
            ends.append(float((layer.forward(x, CONTEXT)[0] * dy).sum()))
        array[place] = kept
        return (ends[0] - ends[1]) / (2 * STEP)

    assert np.abs(y).min(initial=1, where=y != 0) > 10 * STEP  # no ReLU at its kink
    for array, grad in ((x, dx), (layer.weight.value, layer.weight.grad), (layer.bias.value, layer.bias.grad)):
        for place in np.ndindex(array.shape):
            assert grad[place] == pytest.approx(slope(array, place), rel=1e-6, abs=1e-8)


def test_gradients_add_up_over_passes_in_any_order() -> None:
    layer = make_layer(True, Replicate(), AddParts(), Stay())
    random = np.random.default_rng(7)
    batches = [(random.standard_normal((BATCH, INPUTS)), random.standard_normal((BATCH, OUTPUTS))) for _ in range(3)]
    alone = []
    for x, dy in batches:
        layer.backward_weight(layer.backward_input(dy, layer.forward(x, CONTEXT)[1])[1])
        alone.append(layer.weight.grad.copy())
    saved = [layer.forward(x, CONTEXT)[1] for x, _ in batches]  # all in flight at once
    layer.weight.grad[...] = 0
    pending = [layer.backward_input(dy, kept)[1] for (_, dy), kept in zip(batches, saved, strict=True)]
    for waiting in reversed(pending):
        layer.backward_weight(waiting)
    np.testing.assert_allclose(layer.weight.grad, alone[-1], rtol=1e-12)


@pytest.mark.parametrize("want_dx", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_weights_are_complete_before_the_gradient_of_the_input(relu: bool, want_dx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make_layer(relu, DoubleEntering(), AddParts(), Stay())
    random = np.random.default_rng(7)
    x, dy = random.standard_normal((BATCH, INPUTS)), random.standard_normal((BATCH, OUTPUTS))
    saved = layer.forward(x, CONTEXT)[1]
    expected, pending = layer.backward_input(dy, saved)
    layer.backward_weight(pending)
    halves, seen, order = layer.weight.grad.copy(), [], []
    layer.weight.grad[...] = 0
    adjoint = DoubleEntering.adjoint
    monkeypatch.setattr(DoubleEntering, "adjoint", lambda *given: (order.append("input"), adjoint(*given))[1])

    def complete() -> None:
        order.append("weights")
        seen.append(layer.weight.grad.copy())

    dx = layer.backward(dy, saved, want_dx, complete)
    assert order == (["weights", "input"] if want_dx else ["weights"])
    assert seen[0].tobytes() == halves.tobytes() == layer.weight.grad.tobytes()
    assert dx.tobytes() == expected.tobytes() if want_dx else dx is None


def test_the_first_layer_needs_no_gradient_of_its_input() -> None:
    layer = make_layer(True, Replicate(), AddParts(), Stay())
    x = np.ones((BATCH, INPUTS))
    _, saved = layer.forward(x, CONTEXT)
    dx, pending = layer.backward_input(np.ones((BATCH, OUTPUTS)), saved, want_dx=False)
    assert dx is None
    layer.backward_weight(pending)
    assert layer.weight.grad.any()


def test_an_empty_batch() -> None:
    layer = make_layer(True, Replicate(), AddParts(), Stay())
    y, saved = layer.forward(np.empty((0, INPUTS)), CONTEXT)
    dx, pending = layer.backward_input(np.empty((0, OUTPUTS)), saved)
    layer.backward_weight(pending)
    assert (y.shape, dx.shape) == ((0, OUTPUTS), (0, INPUTS))
    assert not layer.weight.grad.any()


def test_inputs_and_gradients_are_left_as_they_were() -> None:
    layer = make_layer(True, Replicate(), AddParts(), Stay())
    x, dy = np.ones((BATCH, INPUTS)), np.ones((BATCH, OUTPUTS))
    _, saved = layer.forward(x, CONTEXT)
    layer.backward_weight(layer.backward_input(dy, saved)[1])
    assert (x == 1).all()
    assert (dy == 1).all()


def test_sequences_and_no_bias() -> None:
    layer = make_layer(False, Replicate(), AddParts(), Stay())
    layer.bias = None
    x, dy = np.random.default_rng(1).standard_normal((2, 3, INPUTS)), np.random.default_rng(2).standard_normal((2, 3, OUTPUTS))
    y, saved = layer.forward(x, CONTEXT)
    dx, pending = layer.backward_input(dy, saved)
    layer.backward_weight(pending)
    np.testing.assert_allclose(y, x @ layer.weight.value.T)
    np.testing.assert_allclose(dx, dy @ layer.weight.value)
    np.testing.assert_allclose(layer.weight.grad, np.einsum("bto,bti->oi", dy, x))


def test_declaration() -> None:
    layer = Linear("head", 6, 8, split="column", gather=True, unit=4, tied="embed.weight", bias=False)
    (weight,) = layer.parameters
    assert (weight.name, weight.shape, weight.split_dim, weight.split_unit, weight.max_shards) == ("embed.weight", (8, 6), 0, 4, 2)
    assert layer.output(((5, 6),)) == ((5, 8),)
    assert layer.cost(((5, 6),)) == 5 * 6 * 8
    assert (layer.divided, Linear("l", 6, 8, split="column").divided) == (False, True)


@pytest.mark.parametrize("shapes", [((5,),), ((4, 5),), ((6,), (6,)), ((),)], ids=str)
def test_an_input_that_does_not_fit_is_named(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ConfigError, match=r"layer fc: expected samples of shape \(\.\.\., 6\), got"):
        Linear("fc", 6, 8).output(shapes)
