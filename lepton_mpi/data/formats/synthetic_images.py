"""Made images: patterns of waves to tell apart, and cells to find.

Shapes: B samples asked for, H rows, W columns, E ellipses.
"""

from __future__ import annotations

from typing import final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.data.formats.synthetic_kind import SyntheticKind, check_shape, draw_uniform
from lepton_mpi.errors import ConfigError

_WAVES = 4  # of which the pattern of a class consists, in each channel
_MAX_CELLS = 6


@final
class WavyImages(SyntheticKind):
    """Grey or coloured images, uint8; a class is a sum of waves, moved a little at random, under noise.

    Args:
        shape: [H, W] or [channels, H, W]; empty: 16 x 16.
        num_classes: number of classes; 0: 4.

    Raises:
        ConfigError: a shape of another number of dims.
    """

    def __init__(self, shape: tuple[int, ...], num_classes: int) -> None:
        own = (16, 16) if len(shape) != 3 else (1, 16, 16)
        self.input_shape = check_shape("images", shape, own, "height and width, or channels, height and width")
        self.num_classes = num_classes or 4
        channels = self.input_shape[0] if len(self.input_shape) == 3 else 1
        drawn = draw_uniform("pattern", np.arange(self.num_classes), 4 * _WAVES * channels)
        self._waves = drawn.reshape(self.num_classes, channels, _WAVES, 4)  # up, right, phase, weight of each wave

    def inputs(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        height, width = self.input_shape[-2:]
        waves = self._waves[self.labels(indices)]
        moved = draw_uniform("moved", indices, 2) * 0.2  # up to a fifth of the image
        rows, columns = np.arange(height) / height + moved[:, :1], np.arange(width) / width + moved[:, 1:]
        image = np.zeros((len(indices), waves.shape[1], height, width))
        for wave in np.moveaxis(waves, 2, 0):  # [B, channels, 4]
            up, right = np.floor(wave[..., 0] * 4)[..., None], np.floor(wave[..., 1] * 4)[..., None]
            phase = up[..., None] * rows[:, None, :, None] + right[..., None] * columns[:, None, None, :]
            image += (0.5 + wave[..., 3, None, None]) * np.cos(2 * np.pi * (phase + wave[..., 2, None, None]))
        noise = draw_uniform("image noise", indices, image[0].size if len(image) else 0).reshape(image.shape) - 0.5
        image = 128 + 16 * image + 170 * noise
        return np.clip(image, 0, 255).astype(np.uint8).reshape(len(indices), *self.input_shape)

    def labels(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.floor(draw_uniform("image class", indices, 1)[:, 0] * self.num_classes).astype(np.int64)


@final
class CellImages(SyntheticKind):
    """Images of cells as a microscope shows them, uint8[H, W], and which pixels are cell (1) or background (0).

    A cell is an ellipse; its brightness fades towards its edge. The background is uneven, and everything under noise.

    Args:
        shape: [H, W]; empty: 64 x 64.
        num_classes: 2; 0: 2.

    Raises:
        ConfigError: a shape of another number of dims, or another number of classes.
    """

    def __init__(self, shape: tuple[int, ...], num_classes: int) -> None:
        self.input_shape = self.label_shape = check_shape("segmentation", shape, (64, 64), "height and width")
        if num_classes not in (0, 2):
            raise ConfigError(
                f"data.num_classes: data.synthetic segmentation has cells and background, 2 classes, got {num_classes}"
            )
        self.num_classes = 2

    def inputs(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        height, width = self.input_shape
        light = draw_uniform("light", indices, 3).astype(np.float32)
        rows, columns = np.arange(height, dtype=np.float32) / height, np.arange(width, dtype=np.float32) / width
        brightness = 50 + 60 * draw_uniform("brightness", indices, _MAX_CELLS).astype(np.float32)
        depth = np.sqrt(np.maximum(self._depth(indices), 0))
        depth *= brightness[:, :, None, None]
        image = depth.max(axis=1)  # where cells overlap, the brighter one is seen
        image += (40 + 50 * light[:, :1] + 40 * light[:, 1:2] * rows)[:, :, None] + (40 * light[:, 2:] * columns)[:, None, :]
        noise = draw_uniform("cell noise", indices, height * width).astype(np.float32).reshape(image.shape)
        image += 80 * (noise - np.float32(0.5))
        pixels: NDArray[np.uint8] = np.clip(image, 0, 255).astype(np.uint8)
        return pixels

    def labels(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        mask: NDArray[np.bool_] = np.any(self._depth(indices) > 0, axis=1)
        return mask.astype(np.int64)

    def _depth(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return 1 in the middle of a cell, 0 at its edge, below 0 outside; float32[B, E, H, W]."""
        height, width = self.input_shape
        u = draw_uniform("cells", indices, 5 * _MAX_CELLS).reshape(-1, 5, _MAX_CELLS, 1)
        side, turn = min(height, width), np.pi * u[:, 4]
        rows, columns = np.arange(height) + 0.5 - height * u[:, 0], np.arange(width) + 0.5 - width * u[:, 1]  # [B, E, .]
        long, short = side * (0.1 + 0.1 * u[:, 2]), side * (0.07 + 0.06 * u[:, 3])
        # ((r cos + c sin) / long)^2 + ((c cos - r sin) / short)^2, by powers of r and c.
        cos, sin, a, b = np.cos(turn), np.sin(turn), long**-2, short**-2
        of_rows, of_columns = rows**2 * (a * cos**2 + b * sin**2), columns**2 * (a * sin**2 + b * cos**2)
        mixed = 2 * (a - b) * cos * sin * rows
        number = 2 + np.floor(draw_uniform("number of cells", indices, 1) * (_MAX_CELLS - 1))  # 2 .. _MAX_CELLS
        of_rows[np.arange(_MAX_CELLS) >= number] = 2  # outside everywhere; the other terms cannot make up for it
        mixed[np.arange(_MAX_CELLS) >= number] = 0
        depth: NDArray[np.float32] = mixed.astype(np.float32)[..., None] * columns.astype(np.float32)[:, :, None, :]
        depth += of_rows.astype(np.float32)[..., None]
        depth += of_columns.astype(np.float32)[:, :, None, :]
        np.subtract(np.float32(1), depth, out=depth)
        return depth
