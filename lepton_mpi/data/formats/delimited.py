"""Blocks of whole lines of a text file, and the numbers in them: how tables of any size are read fast."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np
from numpy.typing import NDArray

BLOCK_NBYTES = 1 << 22
_COMMA, _NEWLINE = ord(","), ord("\n")
# Bytes of which plain numbers, nan and inf consist; a block with any other byte is for a reader of cells. The
# underscore, which float() takes, is not among them.
_PLAIN = b"0123456789+-.eEnaifNAIF \t,\n"


@dataclass(frozen=True)
class LineBlock:
    """Whole lines of a file.

    Attributes:
        content: the lines with their ends; the last line of a file may have none.
        offset: place of the first byte in the file.
        line: number of the first line, from 1.
    """

    content: bytes
    offset: int
    line: int


def read_blocks(file: IO[bytes], nbytes: int = BLOCK_NBYTES) -> Iterator[LineBlock]:
    """Yield a file from its start in blocks of whole lines, each of about `nbytes`, or of one longer line. Local."""
    pieces: list[bytes] = []
    offset, line = 0, 1
    while piece := file.read(nbytes):
        cut = piece.rfind(b"\n") + 1
        if not cut:
            pieces.append(piece)
            continue
        content = b"".join([*pieces, piece[:cut]])
        yield LineBlock(content, offset, line)
        pieces = [piece[cut:]]
        offset, line = offset + len(content), line + count_lines(content)
    if rest := b"".join(pieces):
        yield LineBlock(rest, offset, line)


def count_lines(content: bytes) -> int:
    """Return the number of line ends: newlines, carriage returns, and pairs of them. Local."""
    return content.count(b"\n") + content.count(b"\r") - content.count(b"\r\n")


def parse_numbers(content: bytes, num_columns: int) -> NDArray[np.float64] | None:
    """Return the numbers of comma-separated lines, float64[lines, num_columns]. Local.

    Args:
        content: whole lines.
        num_columns: cells of a line.

    Returns:
        None where a line has another number of cells, or a cell is not plainly a number: what is wrong there, or
        whether anything is (quotes and blank lines may stand in a table), a reader of single cells must find out.
    """
    content = content.replace(b"\r\n", b"\n")
    if not content or content.translate(None, _PLAIN):
        return None
    content = content.removesuffix(b"\n")
    flat = np.frombuffer(content, np.uint8)
    ends = flat[(flat == _COMMA) | (flat == _NEWLINE)] == _NEWLINE
    num_lines = 1 + int(np.count_nonzero(ends))
    if len(ends) != num_lines * num_columns - 1 or not ends[num_columns - 1 :: num_columns].all():
        return None
    cells = content.replace(b"\n", b",").split(b",")
    try:
        return np.fromiter(map(float, cells), np.float64, len(cells)).reshape(num_lines, num_columns)
    except ValueError:
        return None
