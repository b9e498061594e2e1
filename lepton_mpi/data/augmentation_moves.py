"""Shift, crop and mirror images: every pixel of the result is one of the original, so all of it is one gather.

Shapes: B samples, C channels, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.nn.image_input import Channels
from lepton_mpi.runtime.random import philox, random_key

_OUTSIDE = -1  # source of a pixel that no pixel of the original has become
_WORD = np.uint64(32)

Scalar = TypeVar("Scalar", np.float32, np.int64)


@final
@dataclass(frozen=True)
class PixelSources:
    """Where the pixels of each image of a batch come from.

    Attributes:
        rows: int64[B, H], row of the original for each row; -1: it is outside.
        columns: int64[B, W], likewise.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]

    def take(self, images: NDArray[Scalar], channels: Channels, fill: int) -> NDArray[Scalar]:
        """Return the moved images. Local.

        Args:
            images: [B, H, W], [B, C, H, W] or [B, H, W, C].
            channels: where they have their channels.
            fill: value of pixels that come from outside.

        Returns:
            A new array of the same shape and dtype.
        """
        (num_images, height), width = self.rows.shape, self.columns.shape[1]
        pixels = self.rows.clip(0)[:, :, None] * width + self.columns.clip(0)[:, None, :]  # number within its plane
        if channels == "last":
            first = (np.arange(num_images) * (height * width))[:, None, None]
            moved: NDArray[Scalar] = images.reshape(num_images * height * width, images.shape[3]).take(first + pixels, axis=0)
            planes = moved.transpose(0, 3, 1, 2)
        else:
            num_planes = images.shape[1] if channels == "first" else 1
            first = (np.arange(num_images * num_planes) * (height * width)).reshape(num_images, num_planes, 1, 1)
            moved = images.reshape(-1).take(first + pixels[:, None]).reshape(images.shape)
            planes = moved.reshape(num_images, num_planes, height, width)
        planes.transpose(0, 2, 1, 3)[self.rows == _OUTSIDE] = fill
        planes.transpose(0, 3, 1, 2)[self.columns == _OUTSIDE] = fill
        return moved


def draw_offsets(purpose: str, most: int, seed: int, epoch: int, indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return random offsets -most .. most down and to the right for each sample, int64[B, 2]. Local.

    Args:
        purpose: what they are for, which makes them different from others.
        most: largest offset.
        seed: `train.seed`.
        epoch: pass over the data set.
        indices: int64[B], number of each sample in the data set.
    """
    words = philox(random_key(seed, purpose, epoch), indices.astype(np.uint64))[:, :2].astype(np.uint64)
    return (words * np.uint64(2 * most + 1) >> _WORD).astype(np.int64) - most


def draw_mirrored(seed: int, epoch: int, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which samples are mirrored, each with a chance of one half, bool[B]. Local."""
    return philox(random_key(seed, "flip", epoch), indices.astype(np.uint64))[:, 0] >= np.uint32(1 << 31)


def sources(length: int, offsets: NDArray[np.int64], reflect: bool) -> NDArray[np.int64]:
    """Return where the pixels of a row or column come from after a move, int64[B, length]. Local.

    Args:
        length: pixels.
        offsets: int64[B], how far from each place the original lies; less than `length`.
        reflect: whether what lies outside mirrors the image without repeating its edge; else it is -1.
    """
    places = np.arange(length) + offsets[:, None]
    if reflect:
        mirrored: NDArray[np.int64] = length - 1 - np.abs(length - 1 - np.abs(places))
        return mirrored
    places[(places < 0) | (places >= length)] = _OUTSIDE
    return places
