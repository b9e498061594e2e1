"""Two-dimensional convolution, whole or divided over shards.

Dims: B samples, H height, W width, I input channels, O output channels (of this shard), G groups, OH and OW size of the output.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lepton_mpi.errors import ConfigError
from lepton_mpi.nn.chunked_linear import WHOLE, Chunks
from lepton_mpi.nn.initial import Initial, he_uniform
from lepton_mpi.nn.layer import Layer, Shapes, require_shape
from lepton_mpi.nn.module import Context, Module
from lepton_mpi.nn.move import AddParts, Move, Replicate, Stay
from lepton_mpi.nn.parameter import Parameter, ParameterSpec
from lepton_mpi.nn.place import Place
from lepton_mpi.nn.window_counts import window_counts
from lepton_mpi.ops.array_module import array_module
from lepton_mpi.ops.conv2d import conv2d, conv2d_backward_input, conv2d_backward_weight
from lepton_mpi.ops.product import Precision
from lepton_mpi.ops.windows import Pair, Windows, pair


@dataclass(frozen=True)
class Conv2d(Layer):
    """y = the cross-correlation of x with W, plus b; images are channels-last.

    Attributes:
        in_channels, out_channels: global numbers of channels.
        kernel_size, stride, padding, dilation: one number, or (height, width).
        groups: output channels of a group see the input channels of that group only.
        bias: whether there is one.
        split: "column" divides the output channels over the shards; "row" divides the input channels, which come divided from
            a column layer before; "depthwise" divides the channels of a layer with one filter a channel, which come and leave
            divided; None: every shard computes all of it.
        gather: whether the outputs of a column split are brought together again.
        initial: law of the initial weights; None: He-uniform.
    """

    in_channels: int
    out_channels: int
    kernel_size: int | Pair
    stride: int | Pair = 1
    padding: int | Pair = 0
    dilation: int | Pair = 1
    groups: int = 1
    bias: bool = True
    split: Literal["column", "row", "depthwise"] | None = None
    gather: bool = False
    initial: Initial | None = None

    def __post_init__(self) -> None:
        """Refuse groups that do not divide the channels, or that a split would cut.

        Raises:
            ConfigError: there are such groups.
        """
        channels = f"layer {self.name}: {self.in_channels} input and {self.out_channels} output channels"
        if self.groups < 1 or self.in_channels % self.groups or self.out_channels % self.groups:
            raise ConfigError(f"{channels} cannot be divided into {self.groups} groups: choose a divisor of both")
        is_depthwise = self.groups == self.in_channels == self.out_channels
        if self.split == "depthwise" and not is_depthwise:
            raise ConfigError(f"{channels} in {self.groups} groups: a depthwise split needs one group for each channel")
        if self.split in ("column", "row") and self.groups != 1:
            raise ConfigError(f"{channels} in {self.groups} groups: a {self.split} split needs groups = 1")

    @property
    def windows(self) -> Windows:
        """Size and places of the windows."""
        return Windows(pair(self.kernel_size), pair(self.stride), pair(self.padding), pair(self.dilation))

    @property
    def weight_spec(self) -> ParameterSpec:
        """Weight [O, I / G, kernel height, kernel width]."""
        shape = (self.out_channels, self.in_channels // self.groups, *pair(self.kernel_size))
        split_dim = None if self.split is None else 1 if self.split == "row" else 0
        return ParameterSpec(f"{self.name}.weight", shape, split_dim, initial=self.initial or he_uniform(math.prod(shape[1:])))

    @property
    def bias_spec(self) -> ParameterSpec:
        """Bias [O], zeros; whole on every shard of a row split, since it is added after the sum."""
        split_dim = 0 if self.split in ("column", "depthwise") else None
        return ParameterSpec(f"{self.name}.bias", (self.out_channels,), split_dim, decay=False)

    @property
    def parameters(self) -> tuple[ParameterSpec, ...]:
        """Weight, and bias if there is one."""
        return (self.weight_spec, self.bias_spec) if self.bias else (self.weight_spec,)

    @property
    def divided(self) -> bool:
        """True after a column split that is not gathered, and after a depthwise one."""
        return self.split == "depthwise" or (self.split == "column" and not self.gather)

    def output(self, shapes: Shapes) -> Shapes:
        """Return [OH, OW, O] for [H, W, I]."""
        shape = require_shape(self, shapes, (None, None, self.in_channels))
        return ((*window_counts(self, self.windows, shape), self.out_channels),)

    def cost(self, shapes: Shapes) -> int:
        """Return OH OW times the size of the weight."""
        rows, columns = self.windows.counts(*shapes[0][:2])
        return rows * columns * math.prod(self.weight_spec.shape)

    def build(self, parameters: Mapping[str, Parameter], place: Place) -> Conv2dModule:
        """Return the layer at work."""
        return Conv2dModule(
            parameters[self.weight_spec.name],
            parameters[self.bias_spec.name] if self.bias else None,
            self.windows,
            self.groups,
            enter=place.replicate(self.out_channels) if self.split == "column" else Replicate(),
            reduce=place.sum(self.in_channels) if self.split == "row" else AddParts(),
            leave=place.gather(self.out_channels) if self.split == "column" and self.gather else Stay(),
            column_chunks=place.slices(self.out_channels) if self.split == "column" else WHOLE,
            row_chunks=place.slices(self.in_channels) if self.split == "row" else WHOLE,
            precision=place.precision,
        )


class Conv2dModule(Module):
    """y = leave(reduce(conv2d(enter(x), weight)) + bias), see `LinearModule` for the moves."""

    def __init__(
        self,
        weight: Parameter,
        bias: Parameter | None,
        windows: Windows,
        groups: int,
        enter: Move,
        reduce: Move,
        leave: Move,
        column_chunks: Chunks = WHOLE,
        row_chunks: Chunks = WHOLE,
        precision: Precision = "fp32",
    ) -> None:
        """Make the layer on its parameters: weight [O, I / G, kernel height, kernel width], bias [O].

        One of O and I may be divided into chunks.
        """
        self.weight = weight
        self.bias = bias
        self.enter = enter
        self.reduce = reduce
        self.leave = leave
        self.columns = column_chunks
        self.rows = row_chunks
        self._options: dict[str, Any] = {
            "stride": windows.stride,
            "padding": windows.padding,
            "dilation": windows.dilation,
            # A shard of a depthwise layer has as many groups as channels.
            "groups": weight.value.shape[0] if groups > 1 and groups == weight.block.spec.shape[0] else groups,
            "precision": precision,
        }

    def forward(self, x: Any, context: Context) -> tuple[Any, Any]:
        """Return y [B, OH, OW, O] for x [B, H, W, I]."""
        x = self.enter.forward(x)
        y = self.reduce.forward(self._products(x))  # a new array: may be overwritten
        if self.bias is not None:
            y += self.bias.value
        return self.leave.forward(y), x

    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        """Return dx [B, H, W, I] for dy [B, OH, OW, O]."""
        dz = self.reduce.adjoint(self.leave.adjoint(dy))
        if not want_dx:
            return None, (saved, dz)
        weight, chunks = self.weight.value, self.rows if len(self.rows) > 1 else self.columns
        if len(self.rows) > 1:
            dx = array_module(dz).empty(saved.shape, dz.dtype)
            for c in chunks:
                part = (*saved.shape[:3], c.stop - c.start)
                dx[..., c] = conv2d_backward_input(dz, _inputs(weight, c), part, **self._options)
            parts = [dx]
        else:
            parts = [conv2d_backward_input(_channels(dz, c), weight[c], saved.shape, **self._options) for c in chunks]
        return self.enter.adjoint(parts), (saved, dz)

    def backward_weight(self, pending: Any) -> None:
        """Add dW and db."""
        x, dz = pending
        dW, db = self.weight.grad, self.bias.grad if self.bias is not None else None
        if len(self.rows) > 1:
            for i, c in enumerate(self.rows):
                conv2d_backward_weight(dz, _channels(x, c), dW[:, c], None if i else db, **self._options)
            return
        for c in self.columns:
            conv2d_backward_weight(_channels(dz, c), x, dW[c], None if db is None else db[c], **self._options)

    def _products(self, x: Any) -> list[Any]:
        """Return the partial outputs, of which there are several where the input is divided."""
        weight = self.weight.value
        if len(self.rows) > 1:
            return [conv2d(_channels(x, c), _inputs(weight, c), **self._options) for c in self.rows]
        parts = [conv2d(x, weight[c], **self._options) for c in self.columns]
        return parts if len(parts) == 1 else [array_module(x).concatenate(parts, axis=3)]


def _channels(x: Any, chunk: slice) -> Any:
    """Return a chunk of the channels of images, contiguous, as the only chunk of a shard is; `x` itself where it is all."""
    return array_module(x).ascontiguousarray(x[..., chunk])


def _inputs(weight: Any, chunk: slice) -> Any:
    """Return the part of a weight [O, I, ...] that sees a chunk of the input channels, contiguous likewise."""
    return array_module(weight).ascontiguousarray(weight[:, chunk])
