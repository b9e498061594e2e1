"""Residual connection: y = shortcut(x) + body(x)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lepton_mpi.errors import ConfigError
from lepton_mpi.nn.layer import Layer, Shapes
from lepton_mpi.nn.module import Context, Module
from lepton_mpi.nn.parameter import Parameter, ParameterSpec
from lepton_mpi.nn.place import Place


@dataclass(frozen=True)
class Residual(Layer):
    """The sum of a body and a shortcut, both of the same input (He et al. 2016, eq. 1).

    Attributes:
        body: a layer whose output is replicated.
        shortcut: a layer for the other way; None: the input itself.
    """

    body: Layer
    shortcut: Layer | None = None

    @property
    def parameters(self) -> tuple[ParameterSpec, ...]:
        """Those of the body, then those of the shortcut."""
        return self.body.parameters + (self.shortcut.parameters if self.shortcut else ())

    @property
    def keeps_pieces_apart(self) -> bool:
        """True: its parts do."""
        return True

    def output(self, shapes: Shapes) -> Shapes:
        """Return the shape of both ways."""
        one, other = self.body.output(shapes), self.shortcut.output(shapes) if self.shortcut else shapes
        if one != other:
            raise ConfigError(f"layer {self.name}: the body makes samples of shape {one}, the shortcut {other}; they must be equal")
        return one

    def cost(self, shapes: Shapes) -> int:
        """Return the cost of both ways."""
        return self.body.cost(shapes) + (self.shortcut.cost(shapes) if self.shortcut else 0)

    def build(self, parameters: Mapping[str, Parameter], place: Place) -> Module:
        """Return both ways at work."""
        shortcut = self.shortcut.at_work(parameters, place) if self.shortcut else None
        return ResidualModule(self.body.at_work(parameters, place), shortcut)


class ResidualModule(Module):
    """y = shortcut(x) + body(x)."""

    def __init__(self, body: Module, shortcut: Module | None) -> None:
        """Join two ways; no shortcut: the identity."""
        self._body = body
        self._shortcut = shortcut

    def forward(self, x: Any, context: Context) -> tuple[Any, Any]:
        """Return the sum of both ways."""
        y, body = self._body.forward(x, context)
        around, shortcut = self._shortcut.forward(x, context) if self._shortcut else (x, None)
        return y + around, (body, shortcut)

    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        """Return the sum of both ways' gradients."""
        body, shortcut = saved
        dx, pending = self._body.backward_input(dy, body, want_dx)
        around, waiting = self._shortcut.backward_input(dy, shortcut, want_dx) if self._shortcut else (dy, None)
        return dx + around if want_dx else None, (pending, waiting)

    def backward_weight(self, pending: Any) -> None:
        """Add the gradients of both ways."""
        body, shortcut = pending
        self._body.backward_weight(body)
        if self._shortcut:
            self._shortcut.backward_weight(shortcut)
