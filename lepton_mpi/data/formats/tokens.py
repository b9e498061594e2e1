"""Sequences of tokens: a long text cut into windows, and files of token numbers.

Shapes: B samples asked for, T tokens of a window.
"""

from __future__ import annotations

import os
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.data.dataset import Dataset
from lepton_mpi.data.validation import check_file
from lepton_mpi.errors import ConfigError, DataError
from lepton_mpi.runtime.ranges import split_range

_DTYPES = {"uint8": "u1", "uint16": "<u2", "uint32": "<u4"}  # little-endian on every machine
_SCAN_TOKENS = 1 << 22


@final
class TokenWindows(Dataset):
    """Windows of a text that follow each other without a gap; the label of a token is the next token.

    Sample i has the tokens i*T .. i*T + T - 1 as its input, and i*T + 1 .. i*T + T as its labels. What does not
    fill a window at the end is left out.

    Args:
        name: what messages call it.
        tokens: [N], unsigned integers, in memory or memory-mapped.
        context: T.
        vocabulary: one more than the largest token there may be.
    """

    def __init__(self, name: str, tokens: NDArray[Any], context: int, vocabulary: int) -> None:
        num_windows = max(0, (len(tokens) - 1) // context)
        super().__init__(name, num_windows, (context,), vocabulary, (context,), "class")
        self._tokens = np.asarray(tokens)  # of a memory map: the same pages without the slow subclass

    def read_raw(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        return self._take(indices, 0)

    def read_labels(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._take(indices, 1).astype(np.int64, copy=False)

    @property
    def tokens(self) -> NDArray[Any]:
        """The whole text, [N]; not to be written to."""
        return self._tokens

    def split(self, fraction: float) -> tuple[TokenWindows, TokenWindows]:
        """Return the beginning and the end of the text, for training and for testing. Local.

        Args:
            fraction: share of the windows in the end part, rounded down; one window always stays in the beginning.
        """
        context = self.input_shape[0]
        cut = self.num_samples - min(int(self.num_samples * fraction), max(self.num_samples - 1, 0))
        # The parts share one token: the last label of the first is the first input of the second.
        parts = (("training", self._tokens[: cut * context + 1]), ("test", self._tokens[cut * context :]))
        train, test = (TokenWindows(f"{self.name} ({what})", tokens, context, self.num_classes) for what, tokens in parts)
        return train, test

    def first(self, count: int) -> TokenWindows:
        """Return the first windows, as many as `count` says. Local."""
        return TokenWindows(self.name, self._tokens[: count * self.input_shape[0] + 1], self.input_shape[0], self.num_classes)

    def _take(self, indices: NDArray[np.int64], shift: int) -> NDArray[Any]:
        context = self.input_shape[0]
        windows = self._tokens[shift : shift + self.num_samples * context].reshape(self.num_samples, context)  # a view
        return np.take(windows, indices, axis=0)


def cut_windows(name: str, place: str, tokens: NDArray[Any], context: int, vocabulary: int) -> TokenWindows:
    """Return the windows of a text that has at least one. Local.

    Args:
        name: what messages call the data set.
        place: where the text comes from, for messages.
        tokens: [N], unsigned integers.
        context: tokens of a window.
        vocabulary: one more than the largest token there may be.

    Raises:
        ConfigError: `context` is 0.
        DataError: the text is shorter than a window and its last label.
    """
    if context < 1:
        raise ConfigError("model.context: text is cut into windows of as many tokens, got 0: set model.context")
    windows = TokenWindows(name, tokens, context, vocabulary)
    if not windows.num_samples:
        raise DataError(
            f"{place}: expected at least {context + 1} tokens, for one window of model.context = {context} and the token after it, "
            f"found {len(tokens)}: give more text, or lower model.context"
        )
    return windows


def map_tokens(path: str, token_type: str) -> NDArray[Any]:
    """Return the tokens of a binary file, memory-mapped. Local.

    Args:
        path: the file, nothing but tokens one after the other, little-endian.
        token_type: `data.token_type`.

    Raises:
        DataError: the file is missing, empty, or no whole number of tokens long.
    """
    num_bytes, dtype = check_file(path), np.dtype(_DTYPES[token_type])
    if num_bytes % dtype.itemsize:
        raise DataError(
            f"{path}: expected tokens of {dtype.itemsize} bytes, found {num_bytes} bytes, which is no multiple: copy the file "
            f"again, or set data.token_type, which is {token_type}"
        )
    return np.memmap(path, dtype, mode="r")


def scan_tokens(path: str, token_type: str, num_classes: int, part: int = 0, parts: int = 1) -> int:
    """Return the largest token in a part of a file. Local.

    Args:
        path: the file.
        token_type: `data.token_type`.
        num_classes: `data.num_classes`; 0: any token is good.
        part: which part of the file to look at.
        parts: number of equal parts, one a rank.

    Raises:
        DataError: the file is malformed, or a token of the part is not below `num_classes`.
    """
    tokens, largest = np.asarray(map_tokens(path, token_type)), 0
    start, stop = split_range(len(tokens), parts, part)
    for first in range(start, stop, _SCAN_TOKENS):
        piece = tokens[first : min(first + _SCAN_TOKENS, stop)]
        largest = max(largest, int(piece.max()))
        if num_classes and largest >= num_classes:
            place = first + int(np.argmax(piece >= num_classes))
            raise DataError(
                f"{path}, token {place} (byte {place * tokens.itemsize}): expected a token of 0 .. {num_classes - 1}, found "
                f"{tokens[place]}: set data.num_classes to the size of the vocabulary, or check data.token_type"
            )
    return largest


def open_tokens(path: str, token_type: str, context: int, vocabulary: int) -> TokenWindows:
    """Open a file of token numbers whose largest token is known. Local.

    Args:
        path: the file.
        token_type: `data.token_type`.
        context: tokens of a sample.
        vocabulary: one more than the largest token there may be.

    Raises:
        ConfigError: `context` is 0.
        DataError: the file is malformed, or shorter than a window.
    """
    return cut_windows(os.path.basename(path), path, map_tokens(path, token_type), context, vocabulary)
