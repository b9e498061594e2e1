"""Initial values of parameters: laws of random numbers that depend on the global element alone."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.runtime.random import normal, uniform


class Initial(ABC):
    """A law of initial values."""

    @abstractmethod
    def draw(self, key: int, start: int, count: int) -> NDArray[np.float32]:
        """Return elements start .. start+count of a parameter, float32. Local.

        Args:
            key: of the parameter, from the seed and its name.
            start: number of the first element, in C order of the global shape.
            count: number of elements.
        """


@final
@dataclass(frozen=True)
class Constant(Initial):
    """One value everywhere."""

    value: float = 0.0

    def draw(self, key: int, start: int, count: int) -> NDArray[np.float32]:
        """Return the value, repeated."""
        return np.full(count, self.value, np.float32)


@final
@dataclass(frozen=True)
class Uniform(Initial):
    """Uniform in [-bound, bound)."""

    bound: float

    def draw(self, key: int, start: int, count: int) -> NDArray[np.float32]:
        """Return uniform numbers."""
        bound = np.float32(self.bound)
        return uniform(key, start, count) * (2 * bound) - bound


@final
@dataclass(frozen=True)
class Normal(Initial):
    """Normal with mean 0."""

    deviation: float

    def draw(self, key: int, start: int, count: int) -> NDArray[np.float32]:
        """Return normal numbers."""
        return normal(key, start, count) * np.float32(self.deviation)


def he_uniform(fan_in: int) -> Uniform:
    """Return the law for weights before ReLU: variance 2 / fan_in (He et al. 2015, eq. 10). Local."""
    return Uniform(math.sqrt(6.0 / fan_in))


def lecun_uniform(fan_in: int) -> Uniform:
    """Return the law that keeps the variance of a linear map: 1 / fan_in (LeCun et al. 1998, section 4.6). Local."""
    return Uniform(math.sqrt(3.0 / fan_in))
