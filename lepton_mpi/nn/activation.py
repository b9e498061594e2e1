"""Smooth activations as layers: GELU and SiLU, element by element."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lepton_mpi.nn.layer import Layer
from lepton_mpi.nn.module import Context, Module
from lepton_mpi.nn.parameter import Parameter
from lepton_mpi.nn.place import Place
from lepton_mpi.ops.gelu import gelu, gelu_backward, gelu_with_slope
from lepton_mpi.ops.silu import silu, silu_backward, silu_with_slope


@dataclass(frozen=True)
class Gelu(Layer):
    """Gaussian error linear unit (Hendrycks, Gimpel 2016), on inputs of any shape, divided or not.

    Attributes:
        approximate: the tanh form, as GPT-2 has it.
        divides: whether the last dim of its input is divided over the shards, and so that of its output.
    """

    approximate: bool = False
    divides: bool = False

    @property
    def divided(self) -> bool:
        """As its input."""
        return self.divides

    def build(self, parameters: Mapping[str, Parameter], place: Place) -> GeluModule:
        """Return the layer at work."""
        return GeluModule(self.approximate)


class GeluModule(Module):
    """y = x Phi(x)."""

    def __init__(self, approximate: bool = False) -> None:
        """Make the exact function, or its tanh form."""
        self.approximate = approximate

    def forward(self, x: Any, context: Context) -> tuple[Any, Any]:
        """Return y of the shape of x; outside of training the derivative waits until somebody asks for it."""
        if not context.training:
            return gelu(x, self.approximate), (x, None)
        y, slope = gelu_with_slope(x, self.approximate)
        return y, (None, slope)

    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        """Return dx."""
        if not want_dx:
            return None, None
        x, slope = saved
        return gelu_backward(dy, gelu_with_slope(x, self.approximate)[1] if slope is None else slope), None


@dataclass(frozen=True)
class Silu(Layer):
    """Sigmoid linear unit, on inputs of any shape, divided or not.

    Attributes:
        divides: whether the last dim of its input is divided over the shards, and so that of its output.
    """

    divides: bool = False

    @property
    def divided(self) -> bool:
        """As its input."""
        return self.divides

    def build(self, parameters: Mapping[str, Parameter], place: Place) -> SiluModule:
        """Return the layer at work."""
        return SiluModule()


class SiluModule(Module):
    """y = x sigmoid(x)."""

    def forward(self, x: Any, context: Context) -> tuple[Any, Any]:
        """Return y of the shape of x; outside of training the derivative waits until somebody asks for it."""
        if not context.training:
            return silu(x), (x, None)
        y, slope = silu_with_slope(x)
        return y, (None, slope)

    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        """Return dx."""
        if not want_dx:
            return None, None
        x, slope = saved
        return silu_backward(dy, silu_with_slope(x)[1] if slope is None else slope), None
