"""How ranks that hold the same block share the work of writing it."""

from __future__ import annotations

from collections.abc import Sequence


def split_rows(shape: Sequence[int], parts: int, index: int) -> tuple[int, int]:
    """Return the rows of a block that one of several equal holders writes.

    Local. The first `rows % parts` holders get one row more, as in `numpy.array_split`. A block
    without dims counts as one row.

    Args:
        shape: shape of the block; dim 0 is divided.
        parts: number of holders, at least 1.
        index: which holder, from 0.

    Returns:
        `(row_start, row_stop)`; equal where this holder has nothing to write.

    Raises:
        ValueError: `index` is not one of `parts`.
    """
    if not 0 <= index < parts:
        raise ValueError(f"split_rows: expected 0 <= index < parts, received index {index} of {parts} parts")
    rows = shape[0] if len(shape) else 1
    quotient, remainder = divmod(rows, parts)
    start = index * quotient + min(index, remainder)
    return start, start + quotient + (index < remainder)
