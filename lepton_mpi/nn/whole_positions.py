"""The way from slices of the positions to a layer that needs all of them. Dims: B samples, T positions, C features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lepton_mpi.nn.layer import Layer, Shapes
from lepton_mpi.nn.module import Context, Module
from lepton_mpi.nn.parameter import Parameter, ParameterSpec
from lepton_mpi.nn.place import Place
from lepton_mpi.ops.array_module import array_module


@dataclass(frozen=True)
class WholePositions(Layer):
    """Another layer, on every shard with all positions; nothing but that layer where no positions are divided.

    Attributes:
        body: the layer.
    """

    body: Layer

    @property
    def parameters(self) -> tuple[ParameterSpec, ...]:
        """Those of the body."""
        return self.body.parameters

    @property
    def keeps_pieces_apart(self) -> bool:
        """True: the body does."""
        return True

    @property
    def can_divide_output(self) -> bool:
        """As the body says."""
        return self.body.can_divide_output

    def output(self, shapes: Shapes) -> Shapes:
        """Return what the body makes of them."""
        return self.body.output(shapes)

    def cost(self, shapes: Shapes) -> int:
        """Return the body's cost."""
        return self.body.cost(shapes)

    def build(self, parameters: Mapping[str, Parameter], place: Place) -> Module:
        """Return the body at work."""
        body = self.body.at_work(parameters, replace(place, sequence=False))
        return WholePositionsModule(body, place) if place.sequence else body


class WholePositionsModule(Module):
    """y = body(gather(x)). All shards find the same gradient of the whole, of which each keeps its part."""

    def __init__(self, body: Module, place: Place) -> None:
        """Put the gathering of positions before a layer."""
        self._body, self._gather, self._share = body, place.gather_positions(), place.share

    def forward(self, x: Any, context: Context) -> tuple[Any, Any]:
        """Return the body's output for x [B, own T, C]."""
        whole = self._gather.of(context.num_positions).forward(x)
        y, kept = self._body.forward(whole, replace(context, num_positions=0))
        return y, (kept, slice(*self._share(context.num_positions)))

    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        """Return dx [B, own T, C]."""
        kept, own = saved
        dx, pending = self._body.backward_input(dy, kept, want_dx)
        return array_module(dx).ascontiguousarray(dx[:, own]) if want_dx else None, pending

    def backward_weight(self, pending: Any) -> None:
        """Add the gradients of the body's parameters."""
        self._body.backward_weight(pending)
