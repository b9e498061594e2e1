"""What a disk may hold after a power loss, worked out of the log of the system calls of some saves.

The model is in the spirit of ALICE (Pillai et al., OSDI 2014) and CrashMonkey (Mohan et al., OSDI 2018), and weaker than what
ext4, XFS or Lustre do, so that the result does not hang on one of them. After a crash behind call number `position` of the log:

- What was written to a file before an fsync of it began that has ended is there. Of what was written later, every block of 512 or
  4096 bytes is there or not by itself: it has the content of any time since. The size is that of any time since; a block
  that the size covers and that was not written holds zeros, or what was on the disk before (noise).
- What was done to names in a folder before an fsync of that folder began that has ended is there. Of what was done later (creating,
  renaming, deleting), any part is there, in order. An fsync of a file is none of its folder; an fsync of a folder is none of
  the folder above.
- A rename within a folder happens or not. A name whose file or folder never became durable leads nowhere.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from crash_shim.trace import Call

# How what is not durable survives, of files and of names: nothing, everything, up to some time, any part, all but one piece.
SURVIVALS = ("none", "all", "until", "any", "all but one")
_ROOT = -1


@dataclass(frozen=True)
class Recorded:
    """Saves of which every system call is known.

    Attributes:
        folder: the folder around the run folder, which was there before.
        calls: all calls that changed something, in order.
    """

    folder: Path
    calls: list[Call]


@dataclass
class _File:
    """What was done to a file: (call number, kind, offset or size, data), and (begin, end) of every fsync."""

    changes: list[tuple[int, str, int, bytes]] = field(default_factory=list)
    syncs: list[tuple[int, int]] = field(default_factory=list)

    def durable(self, position: int) -> int:
        """Return the call number before which everything is on the disk."""
        return max((begin for begin, end in self.syncs if end <= position), default=0)


class Disk:
    """What a log did to files and folders, and the states that a crash can leave. Files are known by when they were made.

    Args:
        recorded: the log.
        never_synced: name of files whose fsyncs are taken for nothing.
    """

    def __init__(self, recorded: Recorded, never_synced: str = "") -> None:
        self._never_synced = never_synced
        self.calls, self._root = recorded.calls, recorded.folder
        self._files: dict[int, _File] = defaultdict(_File)
        # (call number, operation, folder, name, object): what was done to the names of each folder.
        self._names: list[tuple[int, str, int, str, int, str]] = []
        self._tree: dict[int, dict[str, int]] = {_ROOT: {}}
        self._known: dict[int, int] = {}  # by inode: the file or folder that has it now
        self._begun: dict[tuple[int, tuple[int, int]], int] = {}
        for number, call in enumerate(self.calls, 1):
            self._take(number, call)

    def _take(self, number: int, call: Call) -> None:
        path = Path(call.path)
        if call.operation == "m":
            self._add(number, path, call.inode, folder=True)
        elif call.operation == "o":
            if call.size:
                self._add(number, path, call.inode, folder=False)
            elif call.offset:
                self._files[self._known[call.inode]].changes.append((number, "t", 0, b""))
        elif call.operation in "wta":
            change = (number, call.operation, call.offset if call.operation == "w" else call.size, call.data)
            self._files[self._known[call.inode]].changes.append(change)
        elif call.operation == "s":
            self._begun[call.inode, call.process] = number
        elif call.operation == "S" and path.name != self._never_synced:
            identity = _ROOT if path == self._root else self._known[call.inode]
            self._files[identity].syncs.append((self._begun[call.inode, call.process], number))
        elif call.operation in "ud":
            parent = self._find(path.parent)
            self._names.append((number, "u", parent, path.name, self._tree[parent].pop(path.name), ""))
        elif call.operation == "r":
            parent, other = self._find(path.parent), self._find(Path(call.other).parent)
            if parent != other:
                raise ValueError(f"a rename between folders is not in the model: {call.path} to {call.other}")
            moved = self._tree[parent].pop(path.name)
            self._tree[parent][Path(call.other).name] = moved
            self._names.append((number, "r", parent, path.name, moved, Path(call.other).name))
        elif call.operation not in "Sc":
            raise ValueError(f"operation {call.operation!r} is not in the model: {call.path}")

    def _add(self, number: int, path: Path, inode: int, folder: bool) -> None:
        if path == self._root:
            self._known[inode] = _ROOT
            return
        parent = self._find(path.parent)
        self._known[inode] = self._tree[parent][path.name] = number
        if folder:
            self._tree[number] = {}
        self._names.append((number, "m" if folder else "o", parent, path.name, number, ""))

    def _find(self, path: Path) -> int:
        at = _ROOT
        for name in path.relative_to(self._root).parts:
            at = self._tree[at][name]
        return at

    def build(self, position: int, names: str, contents: str, block: int, noise: bool, draw: random.Random, out: Path) -> None:
        """Make a folder as a crash behind call `position` may leave it.

        Args:
            position: calls that were made.
            names, contents: which of `SURVIVALS` what is not durable of names and of contents follows.
            block: bytes that a disk writes as one.
            noise: whether blocks never written hold noise, not zeros.
            draw: random numbers.
            out: the folder, to be made.
        """
        tree: dict[int, dict[str, int]] = {_ROOT: {}}
        done = [entry for entry in self._names if entry[0] <= position]
        loose = [entry for entry in done if entry[0] > self._files[entry[2]].durable(position)]
        kept = _choose(names, [entry[0] for entry in loose], draw)
        lost = {entry[0] for entry in loose} - kept
        for number, operation, parent, name, identity, new_name in done:
            if operation == "m":
                tree.setdefault(identity, {})
            if number in lost:
                continue
            folder = tree.setdefault(parent, {})
            if operation in "mo":
                folder[name] = identity
            elif folder.get(name) == identity:
                if operation == "r":
                    target = folder.get(new_name)
                    if target is not None and tree.get(target):
                        continue  # a folder that is not empty is not replaced
                    folder[new_name] = identity
                del folder[name]
        self._write(tree, _ROOT, out, lambda file: self._content(file, position, contents, block, noise, draw))

    def _write(self, tree: dict[int, dict[str, int]], identity: int, out: Path, content: Callable[[_File], bytes]) -> None:
        out.mkdir()
        for name, child in tree[identity].items():
            if child in tree:
                self._write(tree, child, out / name, content)
            else:
                (out / name).write_bytes(content(self._files[child]))

    def _content(self, file: _File, position: int, survival: str, block: int, noise: bool, draw: random.Random) -> bytes:
        durable = file.durable(position)
        done = [change for change in file.changes if change[0] <= position]
        base = [change for change in done if change[0] < durable]
        loose = [change for change in done if change[0] >= durable]
        before = _apply(base)
        if survival == "none" or not loose:
            return bytes(before)
        if survival == "all":
            return bytes(_apply(done))
        # What the file held after each change since the last fsync.
        times = [before]
        for count in range(1, len(loose) + 1):
            times.append(_apply(base + loose[:count]))
        if survival == "until":
            return bytes(draw.choice(times))
        nbytes = len(draw.choice(times)) if survival == "any" else len(times[-1])
        num_blocks = -(-nbytes // block)
        missing = draw.randrange(num_blocks) if num_blocks else -1
        out = bytearray()
        for index in range(num_blocks):
            chosen = draw.choice(times) if survival == "any" else before if index == missing else times[-1]
            piece = chosen[index * block : (index + 1) * block]
            hole = min(block, nbytes - index * block) - len(piece)
            out += piece + (draw.randbytes(hole) if noise and hole > 0 else bytes(max(hole, 0)))
        return bytes(out[:nbytes])


def _choose(survival: str, numbers: list[int], draw: random.Random) -> set[int]:
    """Return which of some changes survive."""
    if survival in ("none", "all") or not numbers:
        return set(numbers) if survival == "all" else set()
    if survival == "until":
        return set(numbers[: draw.randint(0, len(numbers))])
    if survival == "any":
        return {number for number in numbers if draw.random() < 0.5}
    return set(numbers) - {draw.choice(numbers)}


def _apply(changes: list[tuple[int, str, int, bytes]]) -> bytearray:
    content = bytearray()
    for _, operation, place, data in changes:
        if operation == "t" and place < len(content):
            del content[place:]
        end = place + len(data)
        if operation in "ta" or (operation == "w" and data):
            content.extend(bytes(max(0, end - len(content))))
        if operation == "w":
            content[place:end] = data
    return content
