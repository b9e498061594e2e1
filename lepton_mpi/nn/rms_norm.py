"""Root mean square normalisation of the features (Zhang, Sennrich 2019). Dims: B samples, C features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lepton_mpi.nn.initial import Constant
from lepton_mpi.nn.layer import Layer, Shapes, require_shape
from lepton_mpi.nn.module import Context, Module
from lepton_mpi.nn.parameter import Parameter, ParameterSpec
from lepton_mpi.nn.place import Place
from lepton_mpi.nn.positionwise import PositionwiseModule
from lepton_mpi.ops.rms_norm import rms_norm, rms_norm_backward


@dataclass(frozen=True)
class RMSNorm(Layer):
    """y = x / sqrt(mean of x^2 + epsilon) * weight over the last dim, which is not divided.

    Attributes:
        num_features: length of the last dim.
        epsilon: added to the mean square.
    """

    num_features: int
    epsilon: float = 1e-6

    @property
    def parameters(self) -> tuple[ParameterSpec, ...]:
        """Weight [C], ones, on every shard."""
        return (ParameterSpec(f"{self.name}.weight", (self.num_features,), initial=Constant(1), decay=False),)

    def output(self, shapes: Shapes) -> Shapes:
        """Return [..., C] for [..., C]."""
        return (require_shape(self, shapes, (-1, self.num_features)),)

    def build(self, parameters: Mapping[str, Parameter], place: Place) -> Module:
        """Return the layer at work."""
        weights = [parameters[spec.name] for spec in self.parameters]
        return PositionwiseModule(self._on, weights, place) if place.sequence else self._on(weights)

    def _on(self, weights: Sequence[Parameter]) -> RMSNormModule:
        return RMSNormModule(weights[0], self.epsilon)


class RMSNormModule(Module):
    """Root mean square normalisation on its weight."""

    def __init__(self, weight: Parameter, epsilon: float) -> None:
        """Make the layer: weight [C]."""
        self.weight = weight
        self.epsilon = epsilon

    def forward(self, x: Any, context: Context) -> tuple[Any, Any]:
        """Return y [B, ..., C] for x [B, ..., C]."""
        y, rstd = rms_norm(x, self.weight.value, self.epsilon)
        return y, (x, rstd)

    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        """Return dx; the gradient of the weight comes out of the same pass."""
        x, rstd = saved
        return rms_norm_backward(dy, x, self.weight.value, rstd, want_dx)

    def backward_weight(self, pending: Any) -> None:
        """Add the gradient of the weight."""
        self.weight.grad[...] += pending
