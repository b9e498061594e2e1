"""Rectified linear unit as a layer of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lepton_mpi.nn.layer import Layer
from lepton_mpi.nn.module import Context, Module
from lepton_mpi.nn.parameter import Parameter
from lepton_mpi.nn.place import Place
from lepton_mpi.ops.relu import relu, relu_backward


@dataclass(frozen=True)
class ReLU(Layer):
    """y = max(x, 0), of any shape.

    Attributes:
        split: whether the last dim comes divided over the shards.
    """

    split: bool = False

    @property
    def divided(self) -> bool:
        """As the input."""
        return self.split

    def build(self, parameters: Mapping[str, Parameter], place: Place) -> Module:
        """Return the layer at work."""
        return ReLUModule()


class ReLUModule(Module):
    """y = max(x, 0)."""

    def forward(self, x: Any, context: Context) -> tuple[Any, Any]:
        """Return y, which is also what is kept: the next layer keeps it anyway."""
        y = relu(x)
        return y, y

    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        """Return dx where y is positive."""
        return relu_backward(dy, saved) if want_dx else None, None
