"""Divide ranges into parts."""

from __future__ import annotations


def split_range(length: int, parts: int, index: int) -> tuple[int, int]:
    """Return start and stop of part `index` of `parts` contiguous parts. Local.

    The first parts are longer by one where it does not come out even, as in `numpy.array_split`.
    """
    small, longer = divmod(length, parts)
    start = index * small + min(index, longer)
    return start, start + small + (index < longer)
