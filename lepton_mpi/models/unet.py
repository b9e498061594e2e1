"""U-Net: an image in, a class for every pixel out.

Source: Ronneberger, Fischer, Brox, "U-Net: convolutional networks for biomedical image segmentation", MICCAI 2015.
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
from lepton_mpi.nn.pooling import MaxPool2d
from lepton_mpi.nn.relu import ReLU
from lepton_mpi.nn.skip import Down, PassBy, Up
from lepton_mpi.nn.upsample import Upsample


@final
class UNet(Family):
    """U-Net of `depth` levels (3) with `width` (16) channels at the first one, twice as many at each further one.

    A level is two 3x3 convolutions with batch norm and ReLU; 2x2 max pooling leads down. The way up doubles the image by
    repeating pixels, followed by a 3x3 convolution (Odena et al. 2016, "Deconvolution and checkerboard artifacts"), and
    joins what the level had on the way down; a 1x1 convolution makes the classes. Convolutions are padded, so that the output
    has the size of the image, whose sides must be divisible by 2^(depth - 1).

    `channels` says how images are stored, `norm_epsilon` 0 is 1e-5. Shards divide the first convolution of a pair and its
    norm by outputs and the second one by inputs; the convolutions on the way up by outputs, gathered.
    """

    tasks: ClassVar[tuple[str, ...]] = ("segmentation",)

    def declare(self, config: ModelConfig, task: Task, data: DataShape) -> ModelSpec:
        """Return the model of a configuration for data of a shape."""
        stored = cast(Literal["auto", "first", "last"], config.channels)
        height, width, channels, place = image_geometry(data.input_shape, stored)
        levels, base = config.depth or 3, config.width or 16
        _check_sizes(height, width, levels)
        if data.label_shape != (height, width):
            raise ConfigError(
                f"model.family unet: expected a class for every pixel, labels of shape {(height, width)} for images of shape "
                f"{data.input_shape}, got labels of shape {data.label_shape}: check the labels, and model.channels"
            )
        epsilon = config.norm_epsilon or 1e-5
        widths = [base * 2**level for level in range(levels)]
        source = ImageInput("input", data.input_shape, place)
        layers = _down(source, channels, widths, epsilon) + _up(widths, epsilon)
        head = Conv2d("head", base, data.num_classes, 1)
        return ModelSpec(
            "unet",
            task,
            data,
            (*layers, head),
            summary=f"unet {levels} levels, {widths[0]} to {widths[-1]} channels, images {height}x{width}x{channels}",
            batch_statistics=True,
        )


def _check_sizes(height: int, width: int, levels: int) -> None:
    """Require sides that can be halved at every level but the last.

    Raises:
        ConfigError: they cannot; says which sizes and which depth could.
    """
    unit = 2 ** (levels - 1)
    if height % unit == 0 and width % unit == 0:
        return
    larger = f"{-(-height // unit) * unit}x{-(-width // unit) * unit}"
    common = math.gcd(height, width)
    fitting = (common & -common).bit_length()  # halvings that both sides allow, plus one
    raise ConfigError(
        f"model.depth: a unet of {levels} levels needs images whose sides are divisible by {unit}, got {height}x{width}: "
        f"images padded to {larger} would fit, or model.depth = {fitting}"
    )


def _convolution_pair(name: str, inputs: int, outputs: int, epsilon: float) -> tuple[Layer, ...]:
    """Declare twice 3x3 convolution, batch norm and ReLU; one sum over the shards serves both."""

    def law(fan_in: int) -> Normal:  # He et al. 2015, eq. 10, as Ronneberger et al. section 3
        return Normal(math.sqrt(2.0 / (9 * fan_in)))

    first = Conv2d(f"{name}.conv1", inputs, outputs, 3, padding=1, bias=False, split="column", initial=law(inputs))
    second = Conv2d(f"{name}.conv2", outputs, outputs, 3, padding=1, bias=False, split="row", initial=law(outputs))
    return (
        first,
        BatchNorm2d(f"{name}.bn1", outputs, epsilon=epsilon, split=True),
        ReLU(f"{name}.relu1", split=True),
        second,
        BatchNorm2d(f"{name}.bn2", outputs, epsilon=epsilon),
        ReLU(f"{name}.relu2"),
    )


def _down(source: Layer, channels: int, widths: list[int], epsilon: float) -> tuple[Layer, ...]:
    """Declare the way down, the lowest level included."""
    layers: list[Layer] = []
    for level, (inputs, outputs) in enumerate(zip([channels, *widths], widths, strict=False)):
        name = f"down.{level}"
        before = (source,) if level == 0 else ()
        body = Chain(name, (*before, *_convolution_pair(name, inputs, outputs, epsilon)))
        last = level == len(widths) - 1
        layers.append(PassBy(name, body) if last else Down(name, body, MaxPool2d(f"{name}.pool", 2, 2, 0)))
    return tuple(layers)


def _up(widths: list[int], epsilon: float) -> tuple[Layer, ...]:
    """Declare the way up."""
    layers: list[Layer] = []
    for level in reversed(range(len(widths) - 1)):
        name, inputs, outputs = f"up.{level}", widths[level + 1], widths[level]
        convolution = Conv2d(f"{name}.up", inputs, outputs, 3, padding=1, split="column", gather=True)
        rise = Chain(f"{name}.rise", (Upsample(f"{name}.upsample", 2), convolution))
        layers.append(Up(name, rise, Chain(name, _convolution_pair(name, 2 * outputs, outputs, epsilon))))
    return tuple(layers)
