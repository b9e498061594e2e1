"""Each shard's own part of a replicated array, ahead of a layer that is split by rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lepton_mpi.nn.layer import Layer, Shapes, require_shape
from lepton_mpi.nn.module import Context, Module
from lepton_mpi.nn.move import Move
from lepton_mpi.nn.parameter import Parameter
from lepton_mpi.nn.place import Place


@dataclass(frozen=True)
class Divide(Layer):
    """Keep this shard's features of the last dim.

    Attributes:
        num_features: global length of the last dim.
        unit: shards divide it in whole units of this length.
    """

    num_features: int
    unit: int = 1

    @property
    def divided(self) -> bool:
        """Always."""
        return True

    def output(self, shapes: Shapes) -> Shapes:
        """Return the same shape: shapes are global."""
        require_shape(self, shapes, (-1, self.num_features))
        return shapes

    def build(self, parameters: Mapping[str, Parameter], place: Place) -> Module:
        """Return the layer at work."""
        return DivideModule(place.gather(self.num_features, self.unit))


class DivideModule(Module):
    """The movement of a gathering, the other way round: its adjoint forward, itself backward."""

    def __init__(self, gather: Move) -> None:
        """Divide what `gather` would bring together."""
        self._gather = gather

    def forward(self, x: Any, context: Context) -> tuple[Any, Any]:
        """Return the own features [..., F of the shard] of x [..., F]."""
        return self._gather.adjoint(x), None

    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        """Return dx [..., F] of all shards' dy."""
        return self._gather.forward(dy) if want_dx else None, None
