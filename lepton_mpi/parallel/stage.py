"""The layers of one stage, run as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lepton_mpi.comm.contract import collective
from lepton_mpi.nn.module import Context, Module
from lepton_mpi.nn.parameter import Parameter
from lepton_mpi.nn.place import Place
from lepton_mpi.parallel.placement import StagePlan

# Told where in the flat gradient buffer everything is complete from, as soon as a layer is done.
GradientReady = Callable[[int], None]


class Stage:
    """A run of layers with one forward and one backward pass.

    Its methods are collective over grid.shard, since layers are divided over the shards, and over grid.data where a layer
    looks at the whole batch.
    """

    def __init__(self, layers: Sequence[Module], layer_starts: Sequence[int], skip_dx: bool) -> None:
        """Make the stage.

        Args:
            layers: layers in order.
            layer_starts: see `StagePlan.layer_starts`.
            skip_dx: True on the first stage, where nobody needs the gradient of the input.
        """
        self._layers = tuple(layers)
        self._starts = tuple(layer_starts)
        self._skip_dx = skip_dx

    @collective("grid.shard")
    def forward(self, x: Any, context: Context) -> tuple[Any, list[Any]]:
        """Return the output and what the backward pass needs. Collective over grid.shard."""
        saved = []
        for layer in self._layers:
            x, kept = layer.forward(x, context)
            saved.append(kept if context.training else None)
        return x, saved

    @collective("grid.shard")
    def backward_input(self, dy: Any, saved: list[Any]) -> tuple[Any, list[Any]]:
        """Return the input's gradient and what `backward_weight` needs. Collective over grid.shard."""
        pending: list[Any] = [None] * len(self._layers)
        for i in reversed(range(len(self._layers))):
            dy, pending[i] = self._layers[i].backward_input(dy, saved[i], i > 0 or not self._skip_dx)
            saved[i] = None  # its memory is needed now
        return dy, pending

    def backward_weight(self, pending: list[Any], ready: GradientReady) -> None:
        """Add the gradients of the parameters, last layer first. Local."""
        for i in reversed(range(len(self._layers))):
            self._layers[i].backward_weight(pending[i])
            pending[i] = None
            ready(self._starts[i])

    @collective("grid.shard")
    def backward(self, dy: Any, saved: list[Any], ready: GradientReady) -> None:
        """Do both halves layer by layer, while the gradient is in the cache. Collective over grid.shard."""
        for i in reversed(range(len(self._layers))):
            layer = self._layers[i]
            dy, pending = layer.backward_input(dy, saved[i], i > 0 or not self._skip_dx)
            saved[i] = None
            layer.backward_weight(pending)
            ready(self._starts[i])


def build_stage(plan: StagePlan, parameters: Sequence[Parameter], place: Place, is_first: bool) -> Stage:
    """Make the layers of a stage on a rank's parameters. Local."""
    by_name = {parameter.block.name: parameter for parameter in parameters}
    return Stage([layer.build(by_name, place) for layer in plan.layers], plan.layer_starts, skip_dx=is_first)
