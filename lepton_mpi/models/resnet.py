"""Residual networks for images.

Source: He, Zhang, Ren, Sun, "Deep residual learning for image recognition", CVPR 2016.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, cast, final

from lepton_mpi.config.schema import ModelConfig
from lepton_mpi.errors import ConfigError
from lepton_mpi.models.family import DataShape, Family, ModelSpec
from lepton_mpi.models.task import Task
from lepton_mpi.nn.batch_norm import BatchNorm2d
from lepton_mpi.nn.chain import Chain
from lepton_mpi.nn.conv2d import Conv2d
from lepton_mpi.nn.image_input import ImageInput, image_geometry
from lepton_mpi.nn.initial import Normal
from lepton_mpi.nn.layer import Layer
from lepton_mpi.nn.linear import Linear
from lepton_mpi.nn.pooling import GlobalAvgPool, MaxPool2d
from lepton_mpi.nn.relu import ReLU
from lepton_mpi.nn.residual import Residual

# Basic blocks of each group for small images (section 4.2), blocks of each group for large ones (table 1).
_SMALL = {depth: ((depth - 2) // 6,) * 3 for depth in (20, 32, 56)}
_LARGE = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
# Images of up to this many pixels a side are small.
_SMALL_SIDE = 64
# A bottleneck block makes this many times the channels that its 3x3 convolution has.
_EXPANSION = 4


@final
class ResNet(Family):
    """Residual network of `depth` 20, 32, 56 (small images) or 18, 50 (large ones).

    Small: 3x3 convolution of `width` (16) channels, three groups of (depth - 2) / 6 basic blocks with 16, 32, 64 channels,
    average over all pixels, fully connected layer. Where a group changes the shape its first shortcut is a 1x1 convolution
    with batch norm (option B of the paper); the paper's networks for CIFAR pad with zeros instead (option A), which has
    about 1 % fewer parameters.

    Large: 7x7 convolution of `width` (64) channels with stride 2, max pooling, four groups; basic blocks for 18 layers,
    bottleneck blocks with the stride in their 3x3 convolution for 50. Names and shapes of the parameters are torchvision's.

    `depth` 0 is 20 for images of up to 64 pixels a side, else 18. `channels` says how images are stored, `norm_epsilon`
    0 is 1e-5. Shards divide the first convolution of a basic block and its norm by outputs and the second one by inputs;
    in a bottleneck block these are the 3x3 convolution and the last one. Everything else is replicated.
    """

    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression")

    def declare(self, config: ModelConfig, task: Task, data: DataShape) -> ModelSpec:
        """Return the model of a configuration for data of a shape."""
        stored = cast(Literal["auto", "first", "last"], config.channels)
        height, width, channels, place = image_geometry(data.input_shape, stored)
        depth = config.depth or (20 if max(height, width) <= _SMALL_SIDE else 18)
        if depth not in _SMALL and depth not in _LARGE:
            raise ConfigError(
                f"model.depth: a resnet has 20, 32 or 56 layers for small images, 18 or 50 for large ones, got {depth}"
            )
        epsilon = config.norm_epsilon or 1e-5
        base = config.width or (16 if depth in _SMALL else 64)
        stem = (ImageInput("input", data.input_shape, place), *_stem(channels, base, depth in _SMALL, epsilon))
        blocks, features = _groups(base, _SMALL.get(depth) or _LARGE[depth], bottleneck=depth == 50, epsilon=epsilon)
        head = (GlobalAvgPool("avgpool"), Linear("fc", features, data.num_outputs))
        return ModelSpec(
            "resnet",
            task,
            data,
            (Chain("stem", stem), *blocks, Chain("head", head)),
            summary=f"resnet {depth} layers, {base} to {features} channels, images {height}x{width}x{channels}",
            batch_statistics=True,
        )


def _convolution(
    name: str, inputs: int, outputs: int, size: int, stride: int = 1, split: Literal["column", "row"] | None = None
) -> Conv2d:
    """Declare a convolution without bias, weights as He et al. 2015 (eq. 14) for a batch norm after it."""
    law = Normal(math.sqrt(2.0 / (size * size * outputs)))
    return Conv2d(name, inputs, outputs, size, stride=stride, padding=size // 2, bias=False, split=split, initial=law)


def _stem(inputs: int, outputs: int, small: bool, epsilon: float) -> tuple[Layer, ...]:
    """Declare what comes before the groups."""
    norm = (BatchNorm2d("bn1", outputs, epsilon=epsilon), ReLU("relu"))
    if small:
        return (_convolution("conv1", inputs, outputs, 3), *norm)
    return (_convolution("conv1", inputs, outputs, 7, stride=2), *norm, MaxPool2d("maxpool", 3, 2, 1))


def _groups(base: int, counts: tuple[int, ...], bottleneck: bool, epsilon: float) -> tuple[tuple[Layer, ...], int]:
    """Declare the blocks of all groups; every group after the first halves the image and doubles the channels."""
    blocks: list[Layer] = []
    inputs = base
    for group, count in enumerate(counts):
        inner = base * 2**group
        outputs = inner * (_EXPANSION if bottleneck else 1)
        for i in range(count):
            stride = 2 if group > 0 and i == 0 else 1
            blocks.append(_block(f"layer{group + 1}.{i}", inputs, inner, outputs, stride, bottleneck, epsilon))
            inputs = outputs
    return tuple(blocks), inputs


def _block(name: str, inputs: int, inner: int, outputs: int, stride: int, bottleneck: bool, epsilon: float) -> Layer:
    """Declare a residual block (figure 5 of the paper), with a 1x1 convolution as shortcut where the shape changes."""

    def norm(number: int, features: int, split: bool = False) -> BatchNorm2d:
        return BatchNorm2d(f"{name}.bn{number}", features, epsilon=epsilon, split=split)

    body: tuple[Layer, ...]
    if bottleneck:
        body = (
            _convolution(f"{name}.conv1", inputs, inner, 1),
            norm(1, inner),
            ReLU(f"{name}.relu1"),
            _convolution(f"{name}.conv2", inner, inner, 3, stride, split="column"),
            norm(2, inner, split=True),
            ReLU(f"{name}.relu2", split=True),
            _convolution(f"{name}.conv3", inner, outputs, 1, split="row"),
            norm(3, outputs),
        )
    else:
        body = (
            _convolution(f"{name}.conv1", inputs, inner, 3, stride, split="column"),
            norm(1, inner, split=True),
            ReLU(f"{name}.relu1", split=True),
            _convolution(f"{name}.conv2", inner, outputs, 3, split="row"),
            norm(2, outputs),
        )
    shortcut = None
    if stride != 1 or inputs != outputs:
        projection = _convolution(f"{name}.downsample.0", inputs, outputs, 1, stride)
        shortcut = Chain(f"{name}.downsample", (projection, BatchNorm2d(f"{name}.downsample.1", outputs, epsilon=epsilon)))
    return Chain(name, (Residual(name, Chain(f"{name}.body", body), shortcut), ReLU(f"{name}.relu")))
