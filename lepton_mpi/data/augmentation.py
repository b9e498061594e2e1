"""Random changes of training samples, keyed by (seed, epoch, sample): equal on every grid.

Shapes: B samples, C what lies before the image dims (channels), H rows, W columns.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.config.schema import DataConfig
from lepton_mpi.errors import DataError
from lepton_mpi.runtime.random import philox, random_key


def choose_max_shift(config: DataConfig, input_shape: tuple[int, ...]) -> int:
    """Return by how many pixels training images are shifted at most: `data.max_shift`, or its choice for -1. Local.

    Raises:
        DataError: a shift is asked for, but the samples are no images of that size.
    """
    if config.max_shift < 0:
        return int(config.format == "digits")
    if config.max_shift > 0 and (len(input_shape) < 2 or config.max_shift >= min(input_shape[-2:])):
        raise DataError(
            f"data.max_shift is {config.max_shift}, expected 0 or less than the sides of the images, but samples have the shape "
            f"{input_shape}: set data.max_shift=0, or store images as (samples, channels, rows, columns)"
        )
    return config.max_shift


def shift_images(
    images_BCHW: NDArray[np.float32], max_shift: int, seed: int, epoch: int, sample_indices: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return images moved by a random whole number of pixels each way, the gap filled with 0. Local.

    Args:
        images_BCHW: float32[B, ..., H, W], with any dims or none in between; raw values, whose background is 0.
        max_shift: largest shift along each dim, in pixels.
        seed: `train.seed`.
        epoch: pass over the data set.
        sample_indices: int64[B], number of each image in the data set.

    Returns:
        A new array of the same shape.
    """
    shape = images_BCHW.shape
    height, width = shape[-2:]
    images_BCHW = images_BCHW.reshape(shape[0], math.prod(shape[1:-2]), height, width)
    words = philox(random_key(seed, "shift", epoch), sample_indices.astype(np.uint64))[:, :2].astype(np.uint64)
    top, left = (words * np.uint64(2 * max_shift + 1) >> np.uint64(32)).astype(np.int64).T  # 0 .. 2 * max_shift each
    padded = np.pad(images_BCHW, ((0, 0), (0, 0), (max_shift, max_shift), (max_shift, max_shift)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
    return windows[np.arange(shape[0]), :, top, left].reshape(shape)
