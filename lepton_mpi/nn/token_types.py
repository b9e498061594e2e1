"""What is added to every token for the part of the text that it belongs to. Dims: B samples, T positions, C features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lepton_mpi.nn.initial import Initial, Normal
from lepton_mpi.nn.layer import Layer, Shapes, require_shape
from lepton_mpi.nn.module import Context, Module
from lepton_mpi.nn.parameter import Parameter, ParameterSpec
from lepton_mpi.nn.place import Place
from lepton_mpi.nn.positionwise import PositionwiseModule


@dataclass(frozen=True)
class TokenTypes(Layer):
    """y = x + weight[0]: all tokens are of the first type (segment embeddings, Devlin et al. 2019, section 3).

    Attributes:
        num_types: rows of the weight; those after the first get no gradient.
        num_features: C.
        initial: law of the initial weight.
    """

    num_types: int
    num_features: int
    initial: Initial = field(default_factory=lambda: Normal(0.02))

    @property
    def parameters(self) -> tuple[ParameterSpec, ...]:
        """Weight [types, C]."""
        return (ParameterSpec(f"{self.name}.weight", (self.num_types, self.num_features), initial=self.initial),)

    def output(self, shapes: Shapes) -> Shapes:
        """Return the same shape, [..., C]."""
        return (require_shape(self, shapes, (-1, self.num_features)),)

    def build(self, parameters: Mapping[str, Parameter], place: Place) -> Module:
        """Return the layer at work."""
        weights = [parameters[f"{self.name}.weight"]]
        return PositionwiseModule(_on, weights, place) if place.sequence else _on(weights)


def _on(weights: Sequence[Parameter]) -> Module:
    return TokenTypesModule(*weights)


class TokenTypesModule(Module):
    """y = x + weight[0]."""

    def __init__(self, weight: Parameter) -> None:
        """Make the layer on its parameter [types, C]."""
        self.weight = weight

    def forward(self, x: Any, context: Context) -> tuple[Any, Any]:
        """Return y in the shape of x."""
        return x + self.weight.value[0], None

    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        """Return dy itself."""
        return dy if want_dx else None, dy

    def backward_weight(self, pending: Any) -> None:
        """Add dy, summed over all tokens, to the first row."""
        self.weight.grad[0] += pending.reshape(-1, self.weight.grad.shape[1]).sum(axis=0)
