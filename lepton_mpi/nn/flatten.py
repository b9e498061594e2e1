"""Samples of any shape as vectors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lepton_mpi.nn.layer import Layer, Shapes, require_shape
from lepton_mpi.nn.module import Context, Module
from lepton_mpi.nn.parameter import Parameter
from lepton_mpi.nn.place import Place


@dataclass(frozen=True)
class Flatten(Layer):
    """[B, ...] becomes [B, F], in C order; the input is not divided over shards."""

    def output(self, shapes: Shapes) -> Shapes:
        """Return the product of the dims."""
        return ((math.prod(require_shape(self, shapes, (-1,))),),)

    def build(self, parameters: Mapping[str, Parameter], place: Place) -> Module:
        """Return the layer at work."""
        return FlattenModule()


class FlattenModule(Module):
    """[B, ...] becomes [B, F]."""

    def forward(self, x: Any, context: Context) -> tuple[Any, Any]:
        """Return y [B, F], a view where x is contiguous."""
        return x.reshape(x.shape[0], math.prod(x.shape[1:])), x.shape

    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        """Return dx in the shape of x."""
        return dy.reshape(saved) if want_dx else None, None
