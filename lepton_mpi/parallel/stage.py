"""The layers of one stage, run as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, final

from lepton_mpi.comm.contract import collective
from lepton_mpi.nn.module import Context, Module
from lepton_mpi.nn.parameter import Parameter
from lepton_mpi.nn.place import Place
from lepton_mpi.parallel.placement import StagePlan

# Told where in the flat gradient buffer everything is complete from, as soon as a layer is done.
GradientReady = Callable[[int], None]


class GradientObserver(Protocol):
    """Told of gradients as the backward pass makes them."""

    def layer_done(self, layer: int, micro_batch: int) -> None:
        """Hear that the weights of a layer have got the gradient of a micro-batch. Local.

        Each layer is told of once for every micro-batch, empty ones included; for one layer the micro-batches come in order.

        Args:
            layer: number of the layer among all that this rank holds, in the order of its flat buffer.
            micro_batch: number of the micro-batch.
        """
        ...


@final
class CompleteFrom:
    """A `GradientObserver` that tells from where on the flat gradient buffer is complete."""

    def __init__(self, layer_starts: Sequence[int], num_micro_batches: int, ready: GradientReady) -> None:
        """Begin with nothing complete.

        Args:
            layer_starts: see `StagePlan.layer_starts`.
            num_micro_batches: micro-batches that make a gradient complete.
            ready: told once for each layer, last one first, where its part begins: all from there on is complete.
        """
        self._starts = tuple(layer_starts)
        self._missing = [num_micro_batches] * len(self._starts)
        self._first_complete = len(self._starts)
        self._ready = ready

    def layer_done(self, layer: int, micro_batch: int) -> None:
        """Count the micro-batches of a layer, and tell of all layers that are complete with those behind them. Local."""
        self._missing[layer] -= 1
        while self._first_complete > 0 and self._missing[self._first_complete - 1] == 0:
            self._first_complete -= 1
            self._ready(self._starts[self._first_complete])


class Stage:
    """A run of layers with one forward and one backward pass: a virtual stage.

    Its methods are collective over grid.shard, since layers are divided over the shards, and over grid.data where a layer
    looks at the whole batch.
    """

    def __init__(self, layers: Sequence[Module], skip_dx: bool, first_layer: int = 0, recompute: bool = False) -> None:
        """Make the stage.

        Args:
            layers: layers in order.
            skip_dx: True on the first virtual stage, where nobody needs the gradient of the input.
            first_layer: number of the first layer among all that this rank holds, as a `GradientObserver` hears it.
            recompute: keep only what enters each layer, and run it forward again when its backward pass is due.
        """
        self._layers = tuple(layers)
        self._skip_dx = skip_dx
        self._first_layer = first_layer
        self._recompute = recompute

    @collective("grid.shard")
    def forward(self, x: Any, context: Context) -> tuple[Any, list[Any]]:
        """Return the output and what the backward pass needs. Collective over grid.shard."""
        saved = []
        for layer in self._layers:
            entered = x
            x, kept = layer.forward(entered, context)
            if context.training:
                saved.append((entered, context) if self._recompute else kept)
            del kept  # its memory may be needed now
        return x, saved

    @collective("grid.shard")
    def backward_input(self, dy: Any, saved: list[Any]) -> tuple[Any, list[Any]]:
        """Return the input's gradient and what `backward_weight` needs. Collective over grid.shard."""
        pending: list[Any] = [None] * len(self._layers)
        for i in reversed(range(len(self._layers))):
            dy, pending[i] = self._layers[i].backward_input(dy, self._take_saved(i, saved), self._wants_dx(i))
        return dy, pending

    def backward_weight(self, pending: list[Any], observer: GradientObserver, micro_batch: int) -> None:
        """Add the gradients of the parameters, last layer first. Local."""
        for i in reversed(range(len(self._layers))):
            self._layers[i].backward_weight(pending[i])
            pending[i] = None
            observer.layer_done(self._first_layer + i, micro_batch)

    @collective("grid.shard")
    def backward(self, dy: Any, saved: list[Any], observer: GradientObserver, micro_batch: int) -> None:
        """Do both halves layer by layer, while the gradient is in the cache. Collective over grid.shard."""
        for i in reversed(range(len(self._layers))):
            complete = partial(observer.layer_done, self._first_layer + i, micro_batch)
            dy = self._layers[i].backward(dy, self._take_saved(i, saved), self._wants_dx(i), complete)

    def _wants_dx(self, i: int) -> bool:
        return i > 0 or not self._skip_dx

    def _take_saved(self, i: int, saved: list[Any]) -> Any:
        """Return what the backward pass of a layer needs."""
        kept, saved[i] = saved[i], None  # its memory is needed now
        if self._recompute:
            # The same bits as before: layers keep no state, and what is random in them is keyed by step and row. Running
            # statistics move in the backward pass of the weights, so they do not move twice.
            _, kept = self._layers[i].forward(*kept)
        return kept


def build_stages(
    plan: StagePlan, parameters: Sequence[Parameter], place: Place, is_first: bool, recompute: bool = False
) -> tuple[Stage, ...]:
    """Make the virtual stages of a rank on its parameters. Local.

    Args:
        plan: what the rank holds.
        parameters: its parameters.
        place: its place of the grid.
        is_first: whether it is on the first stage.
        recompute: see `Stage`.
    """
    by_name = {parameter.block.name: parameter for parameter in parameters}
    stages: list[Stage] = []
    first_layer = 0
    for number, virtual in enumerate(plan.virtual_stages):
        layers = [layer.build(by_name, place) for layer in virtual.layers]
        stages.append(Stage(layers, is_first and number == 0, first_layer, recompute))
        first_layer += len(layers)
    return tuple(stages)
