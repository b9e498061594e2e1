"""Layer normalisation of the features (Ba, Kiros, Hinton 2016). Dims: B samples, C features."""

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
from lepton_mpi.ops.layer_norm import layer_norm, layer_norm_backward


@dataclass(frozen=True)
class LayerNorm(Layer):
    """y = (x - mean) / sqrt(variance + epsilon) * weight + bias over the last dim, which is not divided.

    Attributes:
        num_features: length of the last dim.
        epsilon: added to the variance.
        bias: whether there is one.
    """

    num_features: int
    epsilon: float = 1e-5
    bias: bool = True

    @property
    def weight_spec(self) -> ParameterSpec:
        """Weight [C], ones, on every shard."""
        return ParameterSpec(f"{self.name}.weight", (self.num_features,), initial=Constant(1), decay=False)

    @property
    def bias_spec(self) -> ParameterSpec:
        """Bias [C], zeros, on every shard."""
        return ParameterSpec(f"{self.name}.bias", (self.num_features,), decay=False)

    @property
    def parameters(self) -> tuple[ParameterSpec, ...]:
        """Weight, and bias if there is one."""
        return (self.weight_spec, self.bias_spec) if self.bias else (self.weight_spec,)

    def output(self, shapes: Shapes) -> Shapes:
        """Return [..., C] for [..., C]."""
        return (require_shape(self, shapes, (-1, self.num_features)),)

    def build(self, parameters: Mapping[str, Parameter], place: Place) -> Module:
        """Return the layer at work."""
        weights = [parameters[spec.name] for spec in self.parameters]
        return PositionwiseModule(self._on, weights, place) if place.sequence else self._on(weights)

    def _on(self, weights: Sequence[Parameter]) -> LayerNormModule:
        return LayerNormModule(weights[0], weights[1] if self.bias else None, self.epsilon)


class LayerNormModule(Module):
    """Layer normalisation on its parameters."""

    def __init__(self, weight: Parameter, bias: Parameter | None, epsilon: float) -> None:
        """Make the layer: weight [C], bias [C]."""
        self.weight = weight
        self.bias = bias
        self.epsilon = epsilon

    def forward(self, x: Any, context: Context) -> tuple[Any, Any]:
        """Return y [B, ..., C] for x [B, ..., C]."""
        y, mean, rstd = layer_norm(x, self.weight.value, self.bias.value if self.bias is not None else None, self.epsilon)
        return y, (x, mean, rstd)

    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        """Return dx; the gradients of the parameters come out of the same pass."""
        x, mean, rstd = saved
        dx, dweight, dbias = layer_norm_backward(dy, x, self.weight.value, mean, rstd, want_dx)
        return dx, (dweight, dbias)

    def backward_weight(self, pending: Any) -> None:
        """Add the gradients of weight and bias."""
        dweight, dbias = pending
        self.weight.grad[...] += dweight
        if self.bias is not None:
            self.bias.grad[...] += dbias
