"""What a model family declares: its layers as plain data, before any array exists."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from lepton_mpi.nn.parameter import ParameterSpec


@dataclass(frozen=True)
class LinearSpec:
    """A fully connected layer and how shards divide it.

    Attributes:
        name: prefix of its parameters' names.
        in_features, out_features: global widths.
        relu: whether ReLU follows.
        split: "column" divides the outputs, "row" the inputs, which then come divided from the column layer before.
        gather: whether the outputs of a column split are brought together again.
    """

    name: str
    in_features: int
    out_features: int
    relu: bool
    split: Literal["column", "row"]
    gather: bool = False

    @property
    def weight(self) -> ParameterSpec:
        """Weight [out_features, in_features], He-uniform (He et al. 2015, eq. 10) before ReLU, else LeCun-uniform."""
        bound = math.sqrt((6.0 if self.relu else 3.0) / self.in_features)
        shape = (self.out_features, self.in_features)
        return ParameterSpec(f"{self.name}.weight", shape, 0 if self.split == "column" else 1, bound)

    @property
    def bias(self) -> ParameterSpec:
        """Bias [out_features], zeros; whole on every shard of a row split, since it is added after the sum."""
        return ParameterSpec(f"{self.name}.bias", (self.out_features,), 0 if self.split == "column" else None, decay=False)

    @property
    def max_shards(self) -> int:
        """Most shards that still hold something each."""
        return self.out_features if self.split == "column" else self.in_features

    @property
    def cost(self) -> int:
        """Multiply-adds a sample, for balancing stages."""
        return self.in_features * self.out_features


@dataclass(frozen=True)
class ModelSpec:
    """A model: its family, layers in order, and the widths at its ends.

    Attributes:
        family: name of the family.
        in_features: values a sample.
        num_classes: outputs.
        layers: layers in order; a stage is a run of them.
    """

    family: str
    in_features: int
    num_classes: int
    layers: tuple[LinearSpec, ...]

    @property
    def max_stages(self) -> int:
        """Most pipeline stages."""
        return len(self.layers)

    @property
    def max_shards(self) -> int:
        """Most shards."""
        return min(layer.max_shards for layer in self.layers)

    @property
    def parameters(self) -> tuple[ParameterSpec, ...]:
        """All parameters in the order of the layers."""
        return tuple(spec for layer in self.layers for spec in (layer.weight, layer.bias))

    @property
    def num_parameters(self) -> int:
        """Number of values of all parameters."""
        return sum(math.prod(spec.shape) for spec in self.parameters)
