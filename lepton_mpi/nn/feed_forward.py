"""The feed-forward of a transformer block: two linear maps and an activation between them, as one layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lepton_mpi.nn.activation import Gelu
from lepton_mpi.nn.chain import ChainModule
from lepton_mpi.nn.initial import Initial
from lepton_mpi.nn.layer import Layer, Shapes, require_shape
from lepton_mpi.nn.linear import Linear
from lepton_mpi.nn.parameter import Parameter, ParameterSpec
from lepton_mpi.nn.place import Place


@dataclass(frozen=True)
class FeedForward(Layer):
    """y = second(activation(first(x))); shards divide the hidden features.

    Attributes:
        width: features of x and y.
        hidden: features in between, over all shards.
        activation: between the two maps; "gelu_tanh" is the approximate form of GPT-2.
        first, second: names of the two maps below the layer's own.
        bias: whether they have biases.
        initial_first, initial_second: laws of the weights; None: as `Linear` has them.
    """

    width: int
    hidden: int
    activation: Literal["gelu", "gelu_tanh", "relu"] = "gelu"
    first: str = "fc1"
    second: str = "fc2"
    bias: bool = True
    initial_first: Initial | None = None
    initial_second: Initial | None = None

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The parts in order."""
        relu = self.activation == "relu"
        into = Linear(
            f"{self.name}.{self.first}", self.width, self.hidden, relu, "column", bias=self.bias, initial=self.initial_first
        )
        out = Linear(
            f"{self.name}.{self.second}", self.hidden, self.width, False, "row", bias=self.bias, initial=self.initial_second
        )
        between = Gelu(f"{self.name}.act", approximate=self.activation == "gelu_tanh", divides=True)
        return (into, out) if relu else (into, between, out)

    @property
    def parameters(self) -> tuple[ParameterSpec, ...]:
        """Those of both maps."""
        return tuple(spec for layer in self.layers for spec in layer.parameters)

    @property
    def keeps_pieces_apart(self) -> bool:
        """True: its parts do."""
        return True

    def output(self, shapes: Shapes) -> Shapes:
        """Return [..., width] for [..., width]."""
        return (require_shape(self, shapes, (-1, self.width)),)

    def cost(self, shapes: Shapes) -> int:
        """Return 2 width hidden a row."""
        return 2 * self.layers[0].cost(shapes)

    def build(self, parameters: Mapping[str, Parameter], place: Place) -> ChainModule:
        """Return the parts at work."""
        return ChainModule([layer.at_work(parameters, place) for layer in self.layers])
