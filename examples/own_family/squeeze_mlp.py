"""A family of one's own, explained in docs/extending.md: an operation, a layer, a model of them, and its ONNX form.

mpirun -n 4 python -m lepton_mpi.train config.toml    # in this folder
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lepton_mpi.config.schema import ModelConfig
from lepton_mpi.errors import ConfigError
from lepton_mpi.interop.onnx_graph import OnnxGraph
from lepton_mpi.interop.onnx_layers import export_layer
from lepton_mpi.models.family import DataShape, Family, ModelSpec
from lepton_mpi.models.task import Task
from lepton_mpi.nn.chain import Chain
from lepton_mpi.nn.flatten import Flatten
from lepton_mpi.nn.initial import Constant
from lepton_mpi.nn.layer import Layer, Shapes, require_shape
from lepton_mpi.nn.linear import Linear
from lepton_mpi.nn.module import Context, Module
from lepton_mpi.nn.parameter import Parameter, ParameterSpec
from lepton_mpi.nn.place import Place
from lepton_mpi.nn.residual import Residual
from lepton_mpi.ops.array_module import Array, array_module
from lepton_mpi.ops.checks import check_shape


def squeeze(x: Array, slope: Array) -> Array:
    """Return x / sqrt(1 + (slope x)^2), Carlile et al. 2017, eq. 1, with slope^2 for their alpha. Local.

    Args:
        x: [B, ..., C]; B may be 0.
        slope: [C].

    Raises:
        ValueError: the shapes do not fit.
    """
    check_shape("slope", slope, (x.shape[-1],))
    y: Array = x / array_module(x).sqrt(1 + (slope * x) ** 2)
    return y


def squeeze_backward_input(dy: Array, x: Array, slope: Array) -> Array:
    """Return dx = dy (1 + (slope x)^2)^(-3/2). Local.

    Args:
        dy: [B, ..., C].
        x: [B, ..., C], the input of the forward pass.
        slope: [C].

    Raises:
        ValueError: the shapes do not fit.
    """
    check_shape("dy", dy, x.shape)
    check_shape("slope", slope, (x.shape[-1],))
    dx: Array = dy * (1 + (slope * x) ** 2) ** -1.5
    return dx


def squeeze_backward_weight(dx: Array, x: Array, slope: Array, dslope: Array) -> None:
    """Add the gradient of the slope, the sum of -slope x^3 dx over all rows, to dslope. Local.

    Args:
        dx: [B, ..., C], what `squeeze_backward_input` returned.
        x: [B, ..., C], the input of the forward pass.
        slope: [C].
        dslope: [C]; the caller's, added to.

    Raises:
        ValueError: the shapes do not fit.
    """
    check_shape("dx", dx, x.shape)
    check_shape("dslope", dslope, (x.shape[-1],))
    dslope -= slope * (x**3 * dx).reshape(-1, x.shape[-1]).sum(axis=0)


@dataclass(frozen=True)
class Squeeze(Layer):
    """y = squeeze(x - running mean, slope) over the last dim of [B, ..., C].

    Attributes:
        num_features: C, over all shards.
        split: whether the last dim comes divided over the shards.
        slope: initial slope of every feature.
        momentum: how much of a batch's mean goes into the running mean.
    """

    num_features: int
    split: bool = False
    slope: float = 1.0
    momentum: float = 0.1

    @property
    def parameters(self) -> tuple[ParameterSpec, ...]:
        """Slope and running mean, [C] each."""
        shape, split_dim = (self.num_features,), 0 if self.split else None
        return (
            ParameterSpec(f"{self.name}.slope", shape, split_dim, initial=Constant(self.slope), decay=False),
            ParameterSpec(f"{self.name}.running_mean", shape, split_dim, decay=False, role="statistic"),
        )

    @property
    def divided(self) -> bool:
        """As the input."""
        return self.split

    def output(self, shapes: Shapes) -> Shapes:
        """Return the same shape."""
        return (require_shape(self, shapes, (-1, self.num_features)),)

    def cost(self, shapes: Shapes) -> int:
        """Return four a value."""
        return 4 * math.prod(shapes[0])

    def build(self, parameters: Mapping[str, Parameter], place: Place) -> Module:
        """Return the layer at work."""
        slope, running_mean = (parameters[spec.name] for spec in self.parameters)
        return SqueezeModule(slope, running_mean, self.momentum)


class SqueezeModule(Module):
    """The layer on this shard's features. Every feature is on its own, so nothing moves between shards."""

    def __init__(self, slope: Parameter, running_mean: Parameter, momentum: float) -> None:
        """Make the layer on its parameters, [C of this shard] each."""
        self.slope = slope
        self.running_mean = running_mean
        self.momentum = momentum

    def forward(self, x: Any, context: Context) -> tuple[Any, Any]:
        """Return y [B, ..., C] for x [B, ..., C]."""
        centred = x - self.running_mean.value
        # Sums over micro-batches and data ranks make the mean of the global batch of it.
        share = self.momentum / (context.num_global * math.prod(x.shape[1:-1])) if context.training else 0.0
        return squeeze(centred, self.slope.value), (centred, share)

    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        """Return dx [B, ..., C] for dy [B, ..., C]."""
        centred, share = saved
        dx = squeeze_backward_input(dy, centred, self.slope.value)
        return dx if want_dx else None, (centred, dx, share)

    def backward_weight(self, pending: Any) -> None:
        """Add the gradient of the slope, and what the running mean moves by."""
        centred, dx, share = pending
        squeeze_backward_weight(dx, centred, self.slope.value, self.slope.grad)
        rows = centred.reshape(-1, centred.shape[-1])
        self.running_mean.grad[...] += share * rows.sum(axis=0)


class SqueezeMlp(Family):
    """Fully connected residual blocks with a `Squeeze` in the middle of each.

    `width` (64) features between blocks, `intermediate_size` (2 width) inside of them, `num_layers` (2) blocks. `options` may
    hold "slope=1.0" and "momentum=0.1" of the squeezes. Shards divide the inside of a block.
    """

    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression")

    def declare(self, config: ModelConfig, task: Task, data: DataShape) -> ModelSpec:
        """Return the model of a configuration for data of a shape."""
        num_inputs, width, num_blocks = math.prod(data.input_shape), config.width or 64, config.num_layers or 2
        inside = config.intermediate_size or 2 * width
        options = read_options(config.options)
        stem = Chain("stem", (Flatten("flatten"), Linear("stem", num_inputs, width)))
        blocks = [_block(f"blocks.{i}", width, inside, options) for i in range(num_blocks)]
        head = Linear("head", width, data.num_outputs)
        summary = f"squeeze_mlp {num_blocks} blocks, {num_inputs}-{width}({inside})-{data.num_outputs}"
        return ModelSpec("squeeze_mlp", task, data, (stem, *blocks, head), summary=summary)


def _block(name: str, width: int, inside: int, options: dict[str, float]) -> Layer:
    first = Linear(f"{name}.first", width, inside, split="column")
    middle = Squeeze(f"{name}.squeeze", inside, split=True, **options)
    second = Linear(f"{name}.second", inside, width, split="row")
    return Residual(name, Chain(name, (first, middle, second)))


def read_options(options: tuple[str, ...]) -> dict[str, float]:
    """Return `model.options` as numbers by name. Local.

    Raises:
        ConfigError: an option that the family does not have, or no finite number above 0.
    """
    found = {"slope": 1.0, "momentum": 0.1}
    for option in options:
        name, _, text = option.partition("=")
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if name not in found or not 0 < number < math.inf:
            raise ConfigError(f"model.options: expected slope=NUMBER or momentum=NUMBER above 0, got {option!r}")
        found[name] = number
    return found


@export_layer.register
def _export_squeeze(layer: Squeeze, graph: OnnxGraph, x: Any, shapes: Shapes) -> Any:
    slope, running_mean = (spec.name for spec in layer.parameters)
    centred = graph.add("Sub", x, running_mean)
    scaled = graph.add("Mul", centred, slope)
    square = graph.add("Mul", scaled, scaled)
    return graph.add("Div", centred, graph.add("Sqrt", graph.add("Add", square, graph.constant(1.0))))
