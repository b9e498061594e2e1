"""Hyperbolic tangent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lepton_mpi.nn.layer import Layer
from lepton_mpi.nn.module import Context, Module
from lepton_mpi.nn.parameter import Parameter
from lepton_mpi.nn.place import Place
from lepton_mpi.ops.tanh import tanh, tanh_backward


@dataclass(frozen=True)
class Tanh(Layer):
    """y = tanh(x), element by element."""

    def build(self, parameters: Mapping[str, Parameter], place: Place) -> Module:
        """Return the layer at work."""
        return TanhModule()


class TanhModule(Module):
    """y = tanh(x)."""

    def forward(self, x: Any, context: Context) -> tuple[Any, Any]:
        """Return y in the shape of x."""
        y = tanh(x)
        return y, y

    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        """Return dx in the shape of x."""
        return tanh_backward(dy, saved) if want_dx else None, None
