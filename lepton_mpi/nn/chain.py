"""Layers one after the other, as one layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lepton_mpi.nn.layer import Layer, Shapes
from lepton_mpi.nn.module import Context, Module
from lepton_mpi.nn.parameter import Parameter, ParameterSpec
from lepton_mpi.nn.place import Place


@dataclass(frozen=True)
class Chain(Layer):
    """Layers in order; a stage never ends within a chain."""

    layers: tuple[Layer, ...]

    @property
    def parameters(self) -> tuple[ParameterSpec, ...]:
        """Those of all layers, in order."""
        return tuple(spec for layer in self.layers for spec in layer.parameters)

    @property
    def divided(self) -> bool:
        """As the last layer says."""
        return bool(self.layers) and self.layers[-1].divided

    @property
    def divided_unit(self) -> int:
        """As the last layer says."""
        return self.layers[-1].divided_unit if self.layers else 1

    @property
    def can_divide_output(self) -> bool:
        """As the last layer says."""
        return bool(self.layers) and self.layers[-1].can_divide_output

    @property
    def keeps_pieces_apart(self) -> bool:
        """True: its parts do."""
        return True

    def output(self, shapes: Shapes) -> Shapes:
        """Return what the last layer makes of them."""
        for layer in self.layers:
            shapes = layer.output(shapes)
        return shapes

    def cost(self, shapes: Shapes) -> int:
        """Return the sum of the layers' costs."""
        total = 0
        for layer in self.layers:
            total += layer.cost(shapes)
            shapes = layer.output(shapes)
        return total

    def build(self, parameters: Mapping[str, Parameter], place: Place) -> Module:
        """Return the layers at work."""
        return ChainModule([layer.at_work(parameters, place) for layer in self.layers])


class ChainModule(Module):
    """Modules in order."""

    def __init__(self, modules: Sequence[Module]) -> None:
        """Put modules in a row; none: the identity."""
        self._modules = tuple(modules)

    def forward(self, x: Any, context: Context) -> tuple[Any, Any]:
        """Return the output of the last module."""
        saved = []
        for module in self._modules:
            x, kept = module.forward(x, context)
            saved.append(kept)
        return x, saved

    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        """Return the gradient of the first module's input."""
        pending: list[Any] = [None] * len(self._modules)
        for i in reversed(range(len(self._modules))):
            dy, pending[i] = self._modules[i].backward_input(dy, saved[i], i > 0 or want_dx)
            saved[i] = None  # its memory is needed now
        return dy if want_dx else None, pending

    def backward_weight(self, pending: Any) -> None:
        """Add the gradients of all parameters, last module first."""
        for module, kept in zip(reversed(self._modules), reversed(pending), strict=True):
            module.backward_weight(kept)
