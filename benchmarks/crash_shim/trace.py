"""Read the shim's log of system calls."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

_HEAD = struct.Struct("<3q4i4I")
# Rank in the records of what a trial damages on purpose.
DAMAGER = -1


@dataclass(frozen=True)
class Call:
    """A system call that worked. See `shim.c` for the letters.

    Attributes:
        operation: its letter.
        path: absolute path; of renames and links the old one.
        other: the new path of a rename or link, else "".
        inode: of the file or folder; 0 where it is gone.
        offset, size: as the operation has it.
        data: of a write.
        process: rank, and number of the process that it started (0: the rank itself).
    """

    operation: str
    path: str
    other: str
    inode: int
    offset: int
    size: int
    data: bytes
    process: tuple[int, int]


def read_trace(file: Path) -> list[Call]:
    """Return all calls of a log, in the order in which they ended."""
    content, position, calls = file.read_bytes(), 0, []
    while position < len(content):
        offset, size, inode, _, rank, role, operation, *lengths, _ = _HEAD.unpack_from(content, position)
        position += _HEAD.size
        pieces = []
        for length in lengths:
            pieces.append(content[position : position + length])
            position += length
        path, other, data = pieces
        calls.append(Call(chr(operation), path.decode(), other.decode(), inode, offset, size, data, (rank, role)))
    return calls


def append_damage(trace: Path, file: Path, offset: int, data: bytes) -> None:
    """Add to a log that something wrote to a file and that this is on the disk."""
    path, inode = str(file).encode(), file.stat().st_ino
    with trace.open("ab") as log:
        for operation, written in (("w", data), ("s", b""), ("S", b"")):
            lengths = (len(path), 0, len(written), 0)
            log.write(_HEAD.pack(offset, 0, inode, 0, DAMAGER, 0, ord(operation), *lengths) + path + written)
