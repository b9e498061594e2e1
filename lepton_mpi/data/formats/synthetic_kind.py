"""What a kind of made data consists of, and the random numbers of its samples.

Shapes: B samples asked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.errors import ConfigError
from lepton_mpi.runtime.random import philox, random_key


class SyntheticKind(ABC):
    """A way to make samples.

    Attributes:
        input_shape: shape of one sample.
        label_shape: shape of one sample's label.
        num_classes: number of classes; 0 where labels are values.
    """

    input_shape: tuple[int, ...]
    label_shape: tuple[int, ...] = ()
    num_classes: int = 0

    @abstractmethod
    def inputs(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """Return inputs, [B, *input_shape], a new array. Local."""

    @abstractmethod
    def labels(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """Return labels, [B, *label_shape], a new array. Local."""


def draw_uniform(purpose: str, indices: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Return random numbers of [0, 1) for each sample, float64[B, count], with 24 random bits. Local.

    Args:
        purpose: what they are for; each purpose has numbers of its own.
        indices: int64[B], numbers of samples.
        count: how many for each.
    """
    key = random_key(0, "synthetic", purpose)  # fixed: the data are the same in every run
    counters = np.arange(-(-count // 4), dtype=np.uint64)[None, :]
    words = philox(key, counters, indices.astype(np.uint64)[:, None]).reshape(len(indices), 4 * counters.size)
    return (words[:, :count] >> np.uint32(8)).astype(np.float64) * 2.0**-24


def draw_normal(purpose: str, indices: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Return standard normal numbers for each sample, float64[B, count]. Local.

    From pairs of uniform numbers, by Box and Muller, "A note on the generation of random normal deviates", 1958.
    Arguments are those of `draw_uniform`.
    """
    half = -(-count // 2)
    uniform = draw_uniform(purpose, indices, 2 * half)
    radius, angle = np.sqrt(-2.0 * np.log(1.0 - uniform[:, :half])), 2.0 * np.pi * uniform[:, half:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :count]


def check_shape(kind: str, shape: tuple[int, ...], own: tuple[int, ...], meaning: str) -> tuple[int, ...]:
    """Return the shape asked for, or a kind's own where none is. Local.

    Raises:
        ConfigError: it has another number of dims.
    """
    if shape and len(shape) != len(own):
        raise ConfigError(f"data.synthetic_shape: data.synthetic {kind} takes {meaning}, got {list(shape)}")
    return shape or own
