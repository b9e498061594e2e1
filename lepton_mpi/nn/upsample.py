"""Enlargement of images by repeating pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lepton_mpi.nn.layer import Layer, Shapes, require_shape
from lepton_mpi.nn.module import Context, Module
from lepton_mpi.nn.parameter import Parameter
from lepton_mpi.nn.place import Place
from lepton_mpi.ops.upsample import upsample_nearest, upsample_nearest_backward


@dataclass(frozen=True)
class Upsample(Layer):
    """Every pixel, factor x factor times: nearest-neighbour interpolation.

    Attributes:
        factor: of both sides.
        split: whether the channels come divided over the shards.
    """

    factor: int = 2
    split: bool = False

    @property
    def divided(self) -> bool:
        """As the input."""
        return self.split

    def output(self, shapes: Shapes) -> Shapes:
        """Return [H factor, W factor, C] for [H, W, C]."""
        height, width, channels = require_shape(self, shapes, (None, None, None))
        return ((height * self.factor, width * self.factor, channels),)

    def build(self, parameters: Mapping[str, Parameter], place: Place) -> Module:
        """Return the layer at work."""
        return UpsampleModule(self.factor)


class UpsampleModule(Module):
    """Every pixel, factor x factor times."""

    def __init__(self, factor: int) -> None:
        """Make it for a factor."""
        self._factor = factor

    def forward(self, x: Any, context: Context) -> tuple[Any, Any]:
        """Return y [B, H factor, W factor, C] for x [B, H, W, C]."""
        return upsample_nearest(x, self._factor), None

    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        """Return dx [B, H, W, C]."""
        return upsample_nearest_backward(dy, self._factor) if want_dx else None, None
