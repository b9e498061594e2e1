"""The layers of one stage, run as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.grid import ProcessGrid
from lepton_mpi.nn.linear import Linear
from lepton_mpi.nn.module import Module
from lepton_mpi.nn.parameter import Parameter
from lepton_mpi.parallel.placement import StagePlan
from lepton_mpi.parallel.shard_moves import enter_move, leave_move, reduce_move

# Told the index of a layer of the stage as soon as its gradients of the pass are complete.
LayerDone = Callable[[int], None]


class Stage:
    """A run of layers with one forward and one backward pass.

    Its methods are collective over grid.shard, since layers are divided over the shards.
    """

    def __init__(self, layers: Sequence[Module], skip_dx: bool) -> None:
        """Make the stage.

        Args:
            layers: layers in order.
            skip_dx: True on the first stage, where nobody needs the gradient of the input.
        """
        self._layers = tuple(layers)
        self._skip_dx = skip_dx

    @collective("grid.shard")
    def forward(self, x: Any) -> tuple[Any, list[Any]]:
        """Return the output and what the backward pass needs. Collective over grid.shard."""
        saved = []
        for layer in self._layers:
            x, kept = layer.forward(x)
            saved.append(kept)
        return x, saved

    @collective("grid.shard")
    def backward_input(self, dy: Any, saved: list[Any]) -> tuple[Any, list[Any]]:
        """Return the input's gradient and what `backward_weight` needs. Collective over grid.shard."""
        pending: list[Any] = [None] * len(self._layers)
        for i in reversed(range(len(self._layers))):
            dy, pending[i] = self._layers[i].backward_input(dy, saved[i], i > 0 or not self._skip_dx)
        return dy, pending

    def backward_weight(self, pending: list[Any], done: LayerDone) -> None:
        """Add the gradients of the parameters, last layer first. Local."""
        for i in reversed(range(len(self._layers))):
            self._layers[i].backward_weight(pending[i])
            done(i)

    @collective("grid.shard")
    def backward(self, dy: Any, saved: list[Any], done: LayerDone) -> None:
        """Do both halves layer by layer, while the gradient is in the cache. Collective over grid.shard."""
        for i in reversed(range(len(self._layers))):
            layer = self._layers[i]
            dy, pending = layer.backward_input(dy, saved[i], i > 0 or not self._skip_dx)
            layer.backward_weight(pending)
            done(i)


def build_stage(plan: StagePlan, parameters: Sequence[Parameter], grid: ProcessGrid) -> Stage:
    """Make the layers of this rank's stage on its parameters. Local."""
    layers = []
    for i, spec in enumerate(plan.layers):
        weight, bias = parameters[2 * i : 2 * i + 2]
        layers.append(
            Linear(
                weight,
                bias,
                spec.relu,
                enter=enter_move(grid.shard, spec.split),
                reduce=reduce_move(grid.shard, spec.split),
                leave=leave_move(grid.shard, spec.gather, spec.out_features),
            )
        )
    return Stage(layers, skip_dx=grid.is_first_stage)
