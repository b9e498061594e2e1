"""Items that a user did not choose, drawn at random for learning to rank and for judging a ranking.

Sources: Rendle, Freudenthaler, Gantner, Schmidt-Thieme, "BPR: Bayesian personalized ranking from implicit feedback",
UAI 2009, section 4.2; He, Liao, Zhang, Nie, Hu, Chua, "Neural collaborative filtering", WWW 2017, section 4.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.errors import ConfigError, DataError
from lepton_mpi.runtime.random import philox, random_key

_WORD = np.uint64(32)


@final
@dataclass(frozen=True)
class NegativeItems:
    """Adds to pairs of user and item other items, each any but that one equally likely.

    Draws do not know of each other, so that an item may come twice, nor of other items that the user chose. Where there are no
    more than `count` other items they are not drawn: all are added.

    Attributes:
        num_items: items to draw from, numbered from 0.
        count: how many are added.

    Raises:
        ConfigError: there are fewer than two items, or more than 32-bit random words can tell apart; or none is to be added.
    """

    num_items: int
    count: int = 1

    def __post_init__(self) -> None:
        if not 2 <= self.num_items <= 2**31:
            raise ConfigError(f"model.num_items: expected 2 .. {2**31} items to draw from, got {self.num_items}")

        if self.count < 1:
            raise ConfigError(f"data.ranking_candidates: expected at least 1 item to compare with, got {self.count}")

    def prepare(
        self, inputs: NDArray[np.int64], labels: NDArray[Any], seed: int, epoch: int, indices: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Return rows of user, item, other items. Local.

        Args:
            inputs: int64[B, 2], user and item.
            labels: [B, ...], handed through.
            seed: `train.seed`.
            epoch: pass over the data set; `EVALUATION` for an evaluation.
            indices: int64[B], number of each sample in the data set.

        Returns:
            int64[B, 2 + others], and the labels.

        Raises:
            DataError: inputs of another shape.
        """
        if inputs.ndim != 2 or inputs.shape[1] != 2:
            raise DataError(f"ranking: expected samples of two ids, user and item, found samples of shape {inputs.shape[1:]}")
        others = self._draw(seed, epoch, indices)
        others += others >= inputs[:, 1:]  # all items but the one chosen
        return np.column_stack([inputs, others]), labels

    def _draw(self, seed: int, epoch: int, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return numbers below num_items - 1, int64[B, others]."""
        num_others = self.num_items - 1
        if num_others <= self.count:
            return np.tile(np.arange(num_others), (len(indices), 1))
        streams = np.arange(-(-self.count // 4), dtype=np.uint64)  # each gives four words
        words = philox(random_key(seed, "negative item", epoch), indices.astype(np.uint64)[:, None], streams)
        words = words.reshape(len(indices), 4 * len(streams))[:, : self.count].astype(np.uint64)
        return (words * np.uint64(num_others) >> _WORD).astype(np.int64)
