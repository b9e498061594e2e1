"""The order of samples: a random permutation for every epoch, computed where it is needed.

Nothing is stored or shuffled: the sample at a position follows from (seed, epoch, position)
alone, so no rank, grid, or resumed run can see another order.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.errors import DataError
from lepton_mpi.runtime.random import philox, random_key

# Rounds of the Feistel network, a multiple of 4. Four make a pseudo-random permutation of a large set
# (Luby and Rackoff, 1988). Of 5 or 6 samples all orders must come equally often too: over 12,000 epochs a
# chi-square test finds them uneven with 8 rounds and still with 12, not with 16.
_NUM_ROUNDS = 16


class SampleOrder(ABC):
    """Which sample stands at which position of an epoch.

    Attributes:
        num_samples: samples, and so positions, of an epoch.
        is_random: whether epochs differ; where they do not, whatever else is drawn at random repeats too.
    """

    is_random: ClassVar[bool]

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples

    @abstractmethod
    def at(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the samples at positions of an epoch, int64 in the shape of `positions`. Local.

        Args:
            epoch: pass over the data set.
            positions: int64[n], each within 0 .. num_samples - 1.
        """

    def indices(self, epoch: int, position: int, count: int) -> NDArray[np.int64]:
        """Return the samples at positions `position .. position + count` of an epoch, int64[count]. Local.

        Raises:
            DataError: the epoch has no such positions.
        """
        self.check_positions(position, count)
        return self.at(epoch, np.arange(position, position + count))

    def check_positions(self, position: int, count: int) -> None:
        """Accept positions that the epoch has. Local.

        Raises:
            DataError: it has not.
        """
        if position < 0 or count < 0 or position + count > self.num_samples:
            raise DataError(
                f"positions {position} .. {position + count} asked for, expected within 0 .. {self.num_samples}: "
                "the data set is not the one that the position belongs to"
            )


@final
class SequentialSampler(SampleOrder):
    """The samples as they are numbered, for evaluation."""

    is_random = False

    def at(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        return positions


@final
class Sampler(SampleOrder):
    """A random permutation of the samples for every epoch, in O(count + sqrt(num_samples)).

    A Feistel network over pairs (left, right) of Z_a x Z_b with a * b just above num_samples;
    what falls outside 0 .. num_samples - 1 goes through the network again.

    Source: Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002, methods 2 and 3.
    As a and b are small, the round functions are tables of random numbers.

    Args:
        num_samples: samples to permute.
        seed: `train.seed`.
    """

    is_random = True

    def __init__(self, num_samples: int, seed: int) -> None:
        super().__init__(num_samples)
        self._seed = seed
        self._num_left = math.isqrt(max(num_samples - 1, 0)) + 1
        self._num_right = -(-max(num_samples, 1) // self._num_left)
        self._tables: tuple[int, list[NDArray[np.int64]]] = (-1, [])  # of the epoch last asked for

    def at(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        tables = self._round_tables(epoch)
        found = self._permute(positions, tables)
        while (outside := np.flatnonzero(found >= self.num_samples)).size:
            found[outside] = self._permute(found[outside], tables)
        return found

    def _round_tables(self, epoch: int) -> list[NDArray[np.int64]]:
        """Return the table of each round: what it adds to one half, by the value of the other."""
        if self._tables[0] != epoch:
            counters = np.arange(max(self._num_left, self._num_right), dtype=np.uint64)
            streams = np.arange(_NUM_ROUNDS // 4, dtype=np.uint64)[:, None]
            words = philox(random_key(self._seed, "sampler", epoch), counters, streams)  # [streams, counters, 4]
            rounds = words.transpose(0, 2, 1).reshape(_NUM_ROUNDS, -1).astype(np.uint64)
            # A word scaled to 0 .. n - 1 by its upper bits; the bias of n / 2^32 is far below what any test of it could see.
            rounds[0::2] *= np.uint64(self._num_left)
            rounds[1::2] *= np.uint64(self._num_right)
            self._tables = epoch, list((rounds >> np.uint64(32)).astype(np.int64))
        return self._tables[1]

    def _permute(self, values: NDArray[np.int64], tables: list[NDArray[np.int64]]) -> NDArray[np.int64]:
        left, right = np.divmod(values, self._num_right)
        for i in range(0, _NUM_ROUNDS, 2):
            left = (left + tables[i][right]) % self._num_left
            right = (right + tables[i + 1][left]) % self._num_right
        return left * self._num_right + right
