"""What a rank is about to do together with others, in a form that ranks can compare and people can read."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

# Bytes of a packed record: two paths of usual length and the rest.
RECORD_NBYTES = 512
# Longest text of a field but the site; all of them fit.
_FIELD_LENGTH = 80
# Longest form of a character in JSON: two surrogates.
_CHARACTER_NBYTES = 12
_PACKAGE = Path(__file__).resolve().parents[2]
# Files between a call and its check; what lies above them is the call site.
_MACHINERY = {
    *(str(_PACKAGE / "comm" / name) for name in ("contract.py", "strict/watch.py", "strict/record.py", "strict/calls.py")),
    contextlib.__file__,
}


@dataclass(frozen=True)
class Record:
    """A collective call, or a message.

    Attributes:
        name: what is called, with operation and root where there are any.
        axis: over which ranks.
        count: how many values each rank gives, or "" where ranks may differ.
        dtype: their type, or "".
        site: file and line of the call.
    """

    name: str
    axis: str
    count: str
    dtype: str
    site: str

    def __str__(self) -> str:
        values = " x ".join(text for text in (self.count, self.dtype) if text)
        return f"{self.name}{' of ' if values else ''}{values} over {self.axis} at {self.site}"

    def pack(self) -> bytes:
        """Return the record as `RECORD_NBYTES` bytes; of what is too long the beginning of the site is cut off. Local."""
        others, site = (self.name, self.axis, self.count, self.dtype), self.site
        while True:
            text = json.dumps([*(other[:_FIELD_LENGTH] for other in others), site]).encode()
            if len(text) <= RECORD_NBYTES or not site:
                return text[:RECORD_NBYTES].ljust(RECORD_NBYTES)
            site = site[-(-(len(text) - RECORD_NBYTES) // _CHARACTER_NBYTES) :]

    @classmethod
    def unpack(cls, packed: bytes | bytearray | memoryview) -> Record:
        """Return the record that `pack` packed. Local."""
        return cls(*json.loads(bytes(packed)))


def describe_difference(records: Mapping[int, Record]) -> str:
    """Return a message if ranks are about to do different things, else "". Local, pure.

    The ranks that differ from most others are named first; without a majority, from the lowest rank.

    Args:
        records: what each rank is about to do, by world rank, in rising order.
    """
    counts = Counter(records.values())
    if len(counts) <= 1:
        return ""
    usual = max(counts, key=lambda record: counts[record])  # the first of equals, so the lowest rank's
    odd_rank = next(rank for rank, record in records.items() if record != usual)
    odd = records[odd_rank]
    unequal = [field.name for field in fields(Record) if getattr(odd, field.name) != getattr(usual, field.name)]
    groups: dict[Record, list[int]] = {}
    for rank, record in records.items():
        groups.setdefault(record, []).append(rank)
    first = f"rank {odd_rank} calls {odd}, but {_say_call(groups.pop(usual), usual)}"
    groups[odd].remove(odd_rank)
    others = [f"; {_say_call(ranks, record)}" for record, ranks in groups.items() if ranks]
    return f"ranks differ in {', '.join('call site' if name == 'site' else name for name in unequal)}: {first}{''.join(others)}"


def _say_call(ranks: list[int], record: Record) -> str:
    return f"{name_ranks(ranks)} call{'' if len(ranks) > 1 else 's'} {record}"


def name_ranks(ranks: list[int]) -> str:
    """Return "rank 3" or "ranks 1, 2", of many the first few. Local."""
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"


def call_site() -> str:
    """Return file and line of the code that is about to communicate. Local.

    Where that is in the room `comm`, what called it is named too.
    """
    sites: list[str] = []
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename not in _MACHINERY:
            path, in_comm = _name_file(frame.f_code.co_filename)
            sites.append(f"{path}:{frame.f_lineno}")
            if not in_comm:
                break
        if frame.f_back is None:
            break
        frame = frame.f_back
    if not sites:
        return "the end of the program"  # Python itself calls what is registered for it
    return sites[0] if len(sites) == 1 else f"{sites[0]}, called at {sites[-1]}"


@functools.cache
def _name_file(file: str) -> tuple[str, bool]:
    """Return a file of the package by its path there, others by their own, and whether it is in the room `comm`."""
    path = Path(file)
    if not path.is_relative_to(_PACKAGE):
        return file, False
    return str(path.relative_to(_PACKAGE.parent)), (_PACKAGE / "comm") in path.parents
