"""Pooling layers: windows of images, or whole images, become one pixel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lepton_mpi.errors import ConfigError
from lepton_mpi.nn.layer import Layer, Shapes, require_shape
from lepton_mpi.nn.module import Context, Module
from lepton_mpi.nn.parameter import Parameter
from lepton_mpi.nn.place import Place
from lepton_mpi.nn.window_counts import window_counts
from lepton_mpi.ops.pooling import (
    avg_pool2d,
    avg_pool2d_backward,
    global_avg_pool,
    global_avg_pool_backward,
    max_pool2d,
    max_pool2d_backward,
)
from lepton_mpi.ops.windows import Pair, Windows, pair


@dataclass(frozen=True)
class _Pool2d(Layer):
    """What pooling over windows has in common.

    Attributes:
        kernel_size, stride, padding: one number, or (height, width); stride None: the kernel's size.
        split: whether the channels come divided over the shards.
    """

    kernel_size: int | Pair
    stride: int | Pair | None = None
    padding: int | Pair = 0
    split: bool = False

    @property
    def windows(self) -> Windows:
        """Size and places of the windows."""
        stride = self.kernel_size if self.stride is None else self.stride
        return Windows(pair(self.kernel_size), pair(stride), pair(self.padding))

    @property
    def divided(self) -> bool:
        """As the input."""
        return self.split

    def output(self, shapes: Shapes) -> Shapes:
        """Return [OH, OW, C] for [H, W, C].

        Raises:
            ConfigError: no window fits, or the padding is larger than half of the kernel.
        """
        shape = require_shape(self, shapes, (None, None, None))
        windows = self.windows
        if any(2 * p > k for p, k in zip(windows.padding, windows.kernel, strict=True)):
            raise ConfigError(f"layer {self.name}: a padding of {windows.padding} is more than half of the kernel {windows.kernel}")
        return ((*window_counts(self, windows, shape), shape[2]),)

    def cost(self, shapes: Shapes) -> int:
        """Return the pixels of all windows."""
        return math.prod(self.output(shapes)[0]) * math.prod(self.windows.kernel)


class _Pool2dModule(Module):
    """A pooling without parameters."""

    def __init__(self, windows: Windows) -> None:
        """Make it on its windows."""
        self._options = {"kernel": windows.kernel, "stride": windows.stride, "padding": windows.padding}


@dataclass(frozen=True)
class MaxPool2d(_Pool2d):
    """The largest pixel of each window, for each channel."""

    def build(self, parameters: Mapping[str, Parameter], place: Place) -> Module:
        """Return the layer at work."""
        return MaxPool2dModule(self.windows)


class MaxPool2dModule(_Pool2dModule):
    """The largest pixel of each window."""

    def forward(self, x: Any, context: Context) -> tuple[Any, Any]:
        """Return y [B, OH, OW, C] for x [B, H, W, C]."""
        y, places = max_pool2d(x, **self._options)
        return y, (places, x.shape)

    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        """Return dx [B, H, W, C]."""
        places, shape = saved
        return max_pool2d_backward(dy, places, shape, **self._options) if want_dx else None, None


@dataclass(frozen=True)
class AvgPool2d(_Pool2d):
    """The mean of each window, for each channel; zeros of the padding count."""

    def build(self, parameters: Mapping[str, Parameter], place: Place) -> Module:
        """Return the layer at work."""
        return AvgPool2dModule(self.windows)


class AvgPool2dModule(_Pool2dModule):
    """The mean of each window."""

    def forward(self, x: Any, context: Context) -> tuple[Any, Any]:
        """Return y [B, OH, OW, C] for x [B, H, W, C]."""
        return avg_pool2d(x, **self._options), x.shape

    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        """Return dx [B, H, W, C]."""
        return avg_pool2d_backward(dy, saved, **self._options) if want_dx else None, None


@dataclass(frozen=True)
class GlobalAvgPool(Layer):
    """The mean of all pixels: [H, W, C] becomes [C].

    Attributes:
        split: whether the channels come divided over the shards.
    """

    split: bool = False

    @property
    def divided(self) -> bool:
        """As the input."""
        return self.split

    def output(self, shapes: Shapes) -> Shapes:
        """Return [C] for [H, W, C]."""
        return (require_shape(self, shapes, (None, None, None))[2:],)

    def cost(self, shapes: Shapes) -> int:
        """Return the number of values."""
        return math.prod(shapes[0])

    def build(self, parameters: Mapping[str, Parameter], place: Place) -> Module:
        """Return the layer at work."""
        return GlobalAvgPoolModule()


class GlobalAvgPoolModule(Module):
    """The mean of all pixels."""

    def forward(self, x: Any, context: Context) -> tuple[Any, Any]:
        """Return y [B, C] for x [B, H, W, C]."""
        return global_avg_pool(x), x.shape

    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        """Return dx [B, H, W, C]."""
        return global_avg_pool_backward(dy, saved) if want_dx else None, None
