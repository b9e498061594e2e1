"""The first position of a sequence, which stands for all of it. Dims: B samples, T positions, C features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lepton_mpi.nn.layer import Layer, Shapes, require_shape
from lepton_mpi.nn.module import Context, Module
from lepton_mpi.nn.parameter import Parameter
from lepton_mpi.nn.place import Place
from lepton_mpi.ops.array_module import array_module


@dataclass(frozen=True)
class FirstToken(Layer):
    """y [B, C] = x [B, 0, C], as BERT reads texts (Devlin et al. 2019, section 3)."""

    def output(self, shapes: Shapes) -> Shapes:
        """Return (C,) for (T, C)."""
        return (require_shape(self, shapes, (None, None))[1:],)

    def build(self, parameters: Mapping[str, Parameter], place: Place) -> Module:
        """Return the layer at work."""
        return FirstTokenModule()


class FirstTokenModule(Module):
    """y = x[:, 0]."""

    def forward(self, x: Any, context: Context) -> tuple[Any, Any]:
        """Return y [B, C] for x [B, T, C]."""
        return x[:, 0], x.shape

    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        """Return dx [B, T, C]: zero but for the first position."""
        if not want_dx:
            return None, None
        dx = array_module(dy).zeros(saved, dy.dtype)
        dx[:, 0] = dy
        return dx, None
