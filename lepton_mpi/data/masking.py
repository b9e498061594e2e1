"""Masked language modelling: hide some tokens and ask for them.

Source: Devlin, Chang, Lee, Toutanova, "BERT: Pre-training of deep bidirectional transformers for language
understanding", 2019, section 3.1 and appendix A.1.

Dims: B samples, T positions, n chosen positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.errors import ConfigError
from lepton_mpi.runtime.random import philox, random_key

NOT_ASKED = -100  # label of a position that was not chosen; losses leave it out
_MASKED, _RANDOM = 0.8, 0.1  # shares of the chosen positions; the rest keeps its token
_WORD = np.uint64(32)


@final
@dataclass(frozen=True)
class Masking:
    """Chooses tokens at random: most become the mask token, some another token, some stay. All are asked for.

    Every sample that is not all padding has at least one chosen token.

    Attributes:
        rate: share of the tokens that is chosen; 0.15 in the paper.
        mask_token: token that hides another.
        vocab_size: number of tokens that random ones are drawn from.
        pad_token: token that is never chosen and never drawn, since models give it no attention; None or -1: there is none.

    Raises:
        ConfigError: `rate` is not above 0 and at most 1, or `mask_token` is no token of the vocabulary or the padding.
    """

    rate: float
    mask_token: int
    vocab_size: int
    pad_token: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise ConfigError(f"data.mask_rate: expected a share above 0 and at most 1, got {self.rate!r}")
        if not 0 <= self.mask_token < self.vocab_size:
            raise ConfigError(
                f"data.mask_token: expected a token of the vocabulary, 0 .. {self.vocab_size - 1}, got {self.mask_token}: "
                "set model.vocab_size or data.mask_token"
            )
        if self.mask_token == self.pad_token:
            raise ConfigError(
                f"data.mask_token: {self.mask_token} is model.pad_token too, which gets no attention: set one to another token"
            )

    def prepare(
        self, inputs: NDArray[np.int64], labels: NDArray[Any], seed: int, epoch: int, indices: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return inputs with tokens hidden, and the hidden tokens as labels. Local.

        Args:
            inputs: int64[B, T], or any shape after B.
            labels: not looked at.
            seed: `train.seed`.
            epoch: pass over the data set; `EVALUATION` for an evaluation.
            indices: int64[B], number of each sample in the data set.

        Returns:
            Tokens int64[B, T], and labels int64[B, T]: the original token at chosen positions, `NOT_ASKED` elsewhere.
        """
        tokens_BT = inputs.reshape(len(inputs), math.prod(inputs.shape[1:]))
        samples = indices.astype(np.uint64)
        rows, columns = np.nonzero(self._choose(tokens_BT, seed, epoch, samples))
        words = philox(random_key(seed, "mask token", epoch), samples[rows], columns.astype(np.uint64)).astype(np.uint64)
        lot, drawn = words[:, 0] / 2.0**32, self._draw(words[:, 1])
        original = tokens_BT[rows, columns]
        hidden = np.where(lot < _MASKED, self.mask_token, np.where(lot < _MASKED + _RANDOM, drawn, original))
        masked_BT, asked_BT = tokens_BT.copy(), np.full(tokens_BT.shape, NOT_ASKED, np.int64)
        masked_BT[rows, columns], asked_BT[rows, columns] = hidden, original
        return masked_BT.reshape(inputs.shape), asked_BT.reshape(inputs.shape)

    def _draw(self, words: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return a token for each random word, any but the padding equally likely."""
        if self.pad_token is None or not 0 <= self.pad_token < self.vocab_size:
            return (words * np.uint64(self.vocab_size) >> _WORD).astype(np.int64)
        drawn = (words * np.uint64(self.vocab_size - 1) >> _WORD).astype(np.int64)
        drawn += drawn >= self.pad_token
        return drawn

    def _choose(self, tokens_BT: NDArray[np.int64], seed: int, epoch: int, samples: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return which positions are chosen, bool[B, T]."""
        num_samples, num_positions = tokens_BT.shape
        counters = np.arange(-(-num_positions // 4), dtype=np.uint64)  # each gives the words of four positions
        words = philox(random_key(seed, "mask", epoch), samples[:, None], counters)
        lots_BT = words.reshape(num_samples, 4 * len(counters))[:, :num_positions] / 2.0**32
        if self.pad_token is not None:
            lots_BT[tokens_BT == self.pad_token] = 2.0
        chosen_BT: NDArray[np.bool_] = lots_BT < self.rate
        bare = np.flatnonzero(~chosen_BT.any(axis=1))
        lowest = lots_BT[bare].argmin(axis=1)
        chosen_BT[bare, lowest] = lots_BT[bare, lowest] < 1
        return chosen_BT
