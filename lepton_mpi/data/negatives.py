"""Items that a user did not choose, drawn at random for learning to rank.

Source: Rendle, Freudenthaler, Gantner, Schmidt-Thieme, "BPR: Bayesian personalized ranking from implicit feedback",
UAI 2009, section 4.2.
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
    """Adds to pairs of user and item another item, any but that one equally likely.

    Attributes:
        num_items: items to draw from, numbered from 0.

    Raises:
        ConfigError: there are fewer than two items, or more than 32-bit random words can tell apart.
    """

    num_items: int

    def __post_init__(self) -> None:
        if not 2 <= self.num_items <= 2**31:
            raise ConfigError(f"model.num_items: expected 2 .. {2**31} items to draw from, got {self.num_items}")

    def prepare(
        self, inputs: NDArray[np.int64], labels: NDArray[Any], seed: int, epoch: int, indices: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Return rows of user, item, other item. Local.

        Args:
            inputs: int64[B, 2], user and item.
            labels: [B, ...], handed through.
            seed: `train.seed`.
            epoch: pass over the data set; `EVALUATION` for an evaluation.
            indices: int64[B], number of each sample in the data set.

        Returns:
            int64[B, 3], and the labels.

        Raises:
            DataError: inputs of another shape.
        """
        if inputs.ndim != 2 or inputs.shape[1] != 2:
            raise DataError(f"ranking: expected samples of two ids, user and item, found samples of shape {inputs.shape[1:]}")
        words = philox(random_key(seed, "negative item", epoch), indices.astype(np.uint64))[:, 0].astype(np.uint64)
        others = (words * np.uint64(self.num_items - 1) >> _WORD).astype(np.int64)
        others += others >= inputs[:, 1]  # all items but the one chosen
        return np.column_stack([inputs, others]), labels
