"""Dropout of replicated activations (Srivastava et al. 2014)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lepton_mpi.nn.layer import Layer
from lepton_mpi.nn.module import Context, Module
from lepton_mpi.nn.parameter import Parameter
from lepton_mpi.nn.place import Place
from lepton_mpi.ops.dropout import dropout, dropout_backward
from lepton_mpi.runtime.random import random_key


@dataclass(frozen=True)
class Dropout(Layer):
    """Sets elements to 0 at random in training and scales the others; the identity otherwise.

    The masks follow from (seed, name, step, global sample, element): all shards draw the same one, and any grid does.

    Attributes:
        rate: probability of 0, in [0, 1).
    """

    rate: float = 0.1

    def build(self, parameters: Mapping[str, Parameter], place: Place) -> DropoutModule:
        """Return the layer at work."""
        return DropoutModule(self.rate, random_key(place.seed, "dropout", self.name), place)


class DropoutModule(Module):
    """Dropout under a key."""

    def __init__(self, rate: float, key: int, place: Place) -> None:
        """Make the layer."""
        self.rate = rate
        self.key = key
        self._share = place.share

    def forward(self, x: Any, context: Context) -> tuple[Any, Any]:
        """Return y of the shape of x [B, ...], or x itself where nothing is dropped."""
        if not context.training or self.rate == 0:
            return x, None
        first, size = 0, math.prod(x.shape[1:])
        if context.num_positions:  # x is [B, own positions, ...]
            features = math.prod(x.shape[2:])
            first, size = self._share(context.num_positions)[0] * features, context.num_positions * features
        return dropout(x, self.rate, self.key, context.step, context.first_row, size, first)

    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        """Return dx."""
        if not want_dx:
            return None, None
        return dy if saved is None else dropout_backward(dy, saved, self.rate), None
