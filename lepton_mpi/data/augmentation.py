"""Random changes of training samples, keyed by (seed, epoch, sample): equal on every grid.

Images are shifted, cropped and mirrored as they are stored, cut out once they are normalised, so that what is cleared is the
mean, and mixed last. Where every pixel has a label, labels move as their images do.

Sources: He, Zhang, Ren, Sun, "Deep residual learning for image recognition", CVPR 2016, section 4.2 (crop and flip); DeVries,
Taylor, "Improved regularization of convolutional neural networks with cutout", 2017; Zhang, Cisse, Dauphin, Lopez-Paz,
"mixup: beyond empirical risk minimization", ICLR 2018.

Shapes: B samples, C classes, H rows, W columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.config.augmentation import AugmentationSettings, parse_augmentation
from lepton_mpi.config.schema import DataConfig
from lepton_mpi.data.augmentation_moves import PixelSources, draw_mirrored, draw_offsets, sources
from lepton_mpi.errors import ConfigError, DataError
from lepton_mpi.models.family import ModelSpec
from lepton_mpi.nn.image_input import Channels, image_geometry
from lepton_mpi.ops.softmax_cross_entropy import IGNORED_LABEL, check_labels
from lepton_mpi.runtime.random import philox, random_key

_MIXED_TASKS = ("classification", "regression", "binary")

Indices: TypeAlias = NDArray[np.int64]
Values: TypeAlias = NDArray[np.float32]


@final
@dataclass(frozen=True)
class ImageLayout:
    """Sides of stored images, and where they have their channels."""

    height: int
    width: int
    channels: Channels


@final
@dataclass(frozen=True)
class Augmentation:
    """Changes the samples of a training set. Local and without state: whoever has the key makes the same of a sample.

    Attributes:
        settings: which changes.
        seed: `train.seed`.
        num_samples: samples of the training set, among which mixup draws partners.
        max_shift: largest random shift of images, pixels.
        images: what the images look like; None where no change is one of images.
        move_labels: whether labels are images [H, W] of classes, which move as the inputs do.
        num_classes: classes of a sample's label, whose mix is a probability for each; 0 where labels are values.
    """

    settings: AugmentationSettings
    seed: int
    num_samples: int
    max_shift: int = 0
    images: ImageLayout | None = None
    move_labels: bool = False
    num_classes: int = 0

    def inputs(
        self, read: Callable[[Indices], Values], normalise: Callable[[Values], Values], epoch: int, indices: Indices
    ) -> Values:
        """Return changed and normalised inputs, float32[B, *input_shape]. Local.

        Args:
            read: returns the raw inputs of samples, which then belong to this.
            normalise: returns raw inputs normalised; may do so in place.
            epoch: pass over the data set.
            indices: int64[B], number of each sample in the data set.
        """
        samples = self._with_partners(epoch, indices)
        x = read(samples)
        if self.images is not None and self._moves:
            x = self._pixel_sources(self.images, epoch, samples).take(x, self.images.channels, 0)
        x = normalise(x)
        if self.images is not None and self.settings.cutout:
            self._cut_out(x, self.images, epoch, samples)
        return self._mix(x, epoch, indices)

    def labels(self, read: Callable[[Indices], NDArray[Any]], epoch: int, indices: Indices) -> NDArray[Any]:
        """Return the labels of changed samples. Local.

        Args:
            read: returns the labels of samples.
            epoch: pass over the data set.
            indices: int64[B], number of each sample in the data set.

        Returns:
            Labels as they are; moved as the images, with -100 for pixels from outside; or float32 mixes of two labels:
            [B, C] probabilities of classes, all 0 for what is labelled -100.

        Raises:
            DataError: a class that is to be mixed is out of range.
        """
        samples = self._with_partners(epoch, indices)
        labels = read(samples)
        if self.images is not None and self._moves and self.move_labels:
            return self._pixel_sources(self.images, epoch, samples).take(labels, "none", IGNORED_LABEL)
        if not self.settings.mixup:
            return labels
        return self._mix(_one_hot(labels, self.num_classes) if self.num_classes else labels, epoch, indices)

    @property
    def _moves(self) -> bool:
        return self.settings.flip or self.settings.crop > 0 or self.max_shift > 0

    def _pixel_sources(self, images: ImageLayout, epoch: int, samples: Indices) -> PixelSources:
        height, width, crop = images.height, images.width, self.settings.crop
        purpose, most = ("crop", crop) if crop else ("shift", self.max_shift)
        offsets = draw_offsets(purpose, most, self.seed, epoch, samples)
        rows = sources(height, offsets[:, 0], self.settings.reflect)
        columns = sources(width, offsets[:, 1], self.settings.reflect)
        if self.settings.flip:
            mirrored = draw_mirrored(self.seed, epoch, samples)
            columns[mirrored] = columns[mirrored, ::-1]
        return PixelSources(rows, columns)

    def _cut_out(self, x: Values, images: ImageLayout, epoch: int, samples: Indices) -> None:
        """Clear a square of each image around any of its pixels; what lies outside of the image is lost (DeVries and Taylor)."""
        words = philox(random_key(self.seed, "cutout", epoch), samples.astype(np.uint64))[:, :2].astype(np.uint64)
        sides = np.array([images.height, images.width], np.uint64)
        starts = (words * sides >> np.uint64(32)).astype(np.int64) - self.settings.cutout // 2
        rows, columns = (
            (np.arange(side) >= start[:, None]) & (np.arange(side) < start[:, None] + self.settings.cutout)
            for side, start in zip((images.height, images.width), starts.T, strict=True)
        )
        pixels = x.transpose(0, 2, 3, 1) if images.channels == "first" else x
        pixels[rows[:, :, None] & columns[:, None, :]] = 0

    def _with_partners(self, epoch: int, indices: Indices) -> Indices:
        """Return the samples, followed by those that they are mixed with, if they are."""
        if not self.settings.mixup:
            return indices
        words = self._mixup_words(epoch, indices)[:, 3].astype(np.uint64)
        return np.concatenate([indices, (words * np.uint64(self.num_samples) >> np.uint64(32)).astype(np.int64)])

    def _mix(self, values: Values, epoch: int, indices: Indices) -> Values:
        """Return share * value of the sample + (1 - share) * value of its partner, if samples are mixed."""
        if not self.settings.mixup:
            return values
        drawn = symmetric_beta(self.settings.mixup, self._mixup_words(epoch, indices)[:, :3])
        shares = drawn.astype(np.float32).reshape(-1, *(1,) * (values.ndim - 1))
        own, other = values[: len(indices)], values[len(indices) :]
        mixed: Values = shares * own
        mixed += (1 - shares) * other
        return mixed

    def _mixup_words(self, epoch: int, indices: Indices) -> NDArray[np.uint32]:
        return philox(random_key(self.seed, "mixup", epoch), indices.astype(np.uint64))


def make_augmentation(config: DataConfig, model: ModelSpec, channels: str, num_samples: int, seed: int) -> Augmentation | None:
    """Return the changes that a configuration asks for, or None where it asks for none. Local.

    Args:
        config: section [data].
        model: the model, whose task and data decide what makes sense.
        channels: `model.channels`.
        num_samples: samples of the training set.
        seed: `train.seed`.

    Raises:
        ConfigError: `data.augment` is malformed, or asks for what these samples or this task cannot undergo.
        DataError: `data.max_shift` is too large for the samples.
    """
    settings, shape = parse_augmentation(config.augment), model.data.input_shape
    if model.input_kind == "ids":
        named = (*settings.of_images, *(("mixup",) if settings.mixup else ()))
        if named or config.max_shift > 0:
            what = f"data.augment: {named[0]}" if named else "data.max_shift"
            raise ConfigError(f"{what}: the model family {model.family} takes numbers of tokens, users or items; leave it out")
        return None
    if settings.crop and config.max_shift > 0:
        raise ConfigError(f"data.max_shift = {config.max_shift}: data.augment crops, which shifts images too; leave one out")
    max_shift = 0 if settings.crop else choose_max_shift(config, shape, channels)
    if settings.mixup and model.task.name not in _MIXED_TASKS:
        raise ConfigError(
            f"data.augment: mixup is for the tasks {', '.join(_MIXED_TASKS)}, the task is {model.task.name}: leave it out"
        )
    if not (settings.of_images or settings.mixup or max_shift):
        return None
    images = _layout(settings, shape, channels) if settings.of_images or max_shift else None
    segments = model.task.name == "segmentation"
    if segments and images is not None and model.data.label_shape != (images.height, images.width):
        raise ConfigError(
            f"data.augment, data.max_shift: expected a label for each pixel of {(images.height, images.width)} to move along, got "
            f"labels of shape {model.data.label_shape}: leave them out"
        )
    num_classes = model.data.num_classes if model.task.labels == "class" else 0
    return Augmentation(settings, seed, num_samples, max_shift, images, segments, num_classes)


def choose_max_shift(config: DataConfig, input_shape: tuple[int, ...], channels: str = "auto") -> int:
    """Return by how many pixels training images are shifted at most: `data.max_shift`, or its choice for -1. Local.

    Raises:
        ConfigError: it cannot be told where the images have their channels.
        DataError: a shift is asked for, but the samples are no images of that size.
    """
    if config.max_shift < 0:
        return int(config.format == "digits")
    if config.max_shift > 0:
        sides = _geometry(input_shape, channels)[:2] if len(input_shape) in (2, 3) else (0, 0)
        if config.max_shift >= min(sides):
            raise DataError(
                f"data.max_shift is {config.max_shift}, expected 0 or less than the sides of the images, but samples have the "
                f"shape {input_shape}: set data.max_shift=0, or store images as (samples, channels, rows, columns)"
            )
    return config.max_shift


def symmetric_beta(alpha: float, words: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Return numbers with the law Beta(alpha, alpha), float64[B], without rejection. Local.

    Source: Devroye, "Random variate generation in one line of code", Winter Simulation Conference 1996: 1/2 plus or minus
    1 / (2 sqrt(1 + 1 / ((U^(-1/alpha) - 1) cos^2(2 pi V)))) for U and V uniform.

    Args:
        alpha: above 0.
        words: uint32[B, 3], random.
    """
    with np.errstate(over="ignore", divide="ignore"):  # what is infinite leads to 0, 1/2 or 1, as it should
        spread = ((words[:, 0] + 1.0) / 2.0**32) ** (-1 / alpha) - 1
        half = 0.5 / np.sqrt(1 + 1 / (spread * np.cos(words[:, 1] * (2 * math.pi / 2.0**32)) ** 2))
    shares: NDArray[np.float64] = np.where(words[:, 2] >= np.uint32(1 << 31), 0.5 + half, 0.5 - half)
    return shares


def _one_hot(labels: NDArray[np.int64], num_classes: int) -> Values:
    """Return [B, C] with a 1 for the class of each label, and zeros where it is -100."""
    check_labels(labels, num_classes)
    return np.asarray(labels[..., np.newaxis] == np.arange(num_classes), np.float32)


def _layout(settings: AugmentationSettings, shape: tuple[int, ...], channels: str) -> ImageLayout:
    """Return what the images look like.

    Raises:
        ConfigError: the samples are no images, or smaller than a setting needs.
    """
    named = ", ".join(settings.of_images) or "data.max_shift"
    if len(shape) not in (2, 3):
        raise ConfigError(f"data.augment: {named} is for images [H, W], [C, H, W] or [H, W, C], got samples of shape {shape}")
    height, width, place = _geometry(shape, channels)
    if settings.crop >= min(height, width):
        raise ConfigError(f"data.augment: crop:{settings.crop}: expected less than the sides of the images, {height}x{width}")
    if settings.cutout > min(height, width):
        raise ConfigError(f"data.augment: cutout:{settings.cutout}: expected at most the sides of the images, {height}x{width}")
    return ImageLayout(height, width, place)


def _geometry(shape: tuple[int, ...], channels: str) -> tuple[int, int, Channels]:
    """Return height, width and where the channels are; images without any may be stored whatever `model.channels` says."""
    wanted = cast(Literal["auto", "first", "last"], channels if len(shape) == 3 else "auto")
    height, width, _, place = image_geometry(shape, wanted)
    return height, width, place
