"""The process that writes a rank's part of a checkpoint while the rank trains on.

It is started as a script, `python -I -S write_process.py FD NBYTES PARENT`, and imports nothing but the standard library and
the extension for digests, which needs nothing else: no MPI that would take it for a rank, no h5py, no NumPy that would start
threads. FD is shared memory with the state to
write. It reads one JSON object a line from standard input and answers each with one line on standard output:

    {"do": "plan", "write": [extent, ...], "check": [extent, ...]}            -> {"done": "plan"}
    {"do": "write", "file": path}                                             -> {"done": "write", "digests": [...]}
    {"do": "check", "file": path, "digests": [...]}                           -> {"done": "check"}, or with
                                                                 "damaged": number of an extent, "found" and "expected"
    anything that fails                                                       -> {"failed": text}

An extent is [position in the memory, position in the file, bytes of a run, [[count, stride], ...]]: runs of bytes that follow
each other in the memory and lie apart in the file. It ends when its standard input does, so never later than its rank.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.machinery
import importlib.util
import itertools
import json
import mmap
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

Extent = tuple[int, int, int, list[tuple[int, int]]]

# Bytes that are digested and written, or read and digested, at a time: few enough for a cache.
PIECE_NBYTES = 2**20
# After so many the process looks whether its rank still lives.
_LOOK_NBYTES = 8 * 2**20
_NICENESS = 10  # training comes first
_PR_SET_PDEATHSIG = 1  # prctl(2)
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def _load_crc32() -> Callable[..., int]:
    """Return `crc32(data, value=0)`, from the package's folder and without the package."""
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    spec = importlib.machinery.PathFinder.find_spec("_crc32", [folder])
    if spec is None or spec.loader is None:
        raise ImportError(f"the extension _crc32 is missing in {folder}: build it with `make native`, or install lepton_mpi again")
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function: Callable[..., int] = module.crc32
    return function


crc32 = _load_crc32()


class Orphaned(Exception):
    """The rank that this process writes for is gone."""


def extent_nbytes(extent: Extent) -> int:
    """Return the bytes of an extent. Local."""
    _, _, run_nbytes, dims = extent
    for count, _ in dims:
        run_nbytes *= count
    return run_nbytes


def runs(extent: Extent) -> Iterator[tuple[int, int, int]]:
    """Yield `(position in the memory, position in the file, bytes)` of pieces of an extent, in order. Local."""
    memory, start, run_nbytes, dims = extent
    for steps in itertools.product(*(range(0, count * stride, stride) for count, stride in dims)):
        position = start + sum(steps)
        for first in range(0, run_nbytes, PIECE_NBYTES):
            nbytes = min(PIECE_NBYTES, run_nbytes - first)
            yield memory, position + first, nbytes
            memory += nbytes


class Writer:
    """Writes and checks extents, as told."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._write: list[Extent] = []
        self._check: list[Extent] = []

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        """Carry out a command and return the answer."""
        task = command["do"]
        if task == "plan":
            self._write, self._check = list(command["write"]), list(command["check"])
            return {"done": task}
        if task == "write":
            return {"done": task, "digests": self.write(command["file"])}
        if task == "check":
            return self.check(command["file"], command["digests"])
        return {"failed": f"unknown task {task!r}"}

    def write(self, file: str) -> list[int]:
        """Write all extents, force them to the disk, and return the CRC-32 of each, taken of the memory."""
        descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
        try:
            digests = [self._write_extent(descriptor, extent) for extent in self._write]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return digests

    def _write_extent(self, descriptor: int, extent: Extent) -> int:
        found, seen = 0, 0
        for start, position, nbytes in runs(extent):
            piece = self._memory[start : start + nbytes]
            found = crc32(piece, found)
            write_fully(descriptor, piece, position)
            seen += nbytes
            if seen >= _LOOK_NBYTES:
                seen = 0
                check_parent()
        return found

    def check(self, file: str, digests: list[int]) -> dict[str, Any]:
        """Compare what a file holds with digests of another writer's memory."""
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for index, (extent, expected) in enumerate(zip(self._check, digests, strict=True)):
                found = read_digest(descriptor, extent, check_parent)
                if found != expected:
                    return {"done": "check", "damaged": index, "found": found, "expected": expected}
        finally:
            os.close(descriptor)
        return {"done": "check"}


def write_fully(descriptor: int, data: memoryview, position: int) -> None:
    """Write all bytes; any write may be short. Local."""
    while data:
        written = os.pwrite(descriptor, data, position)
        if written == 0:
            raise OSError(f"pwrite took none of {len(data)} bytes at offset {position}")
        data, position = data[written:], position + written


def read_digest(descriptor: int, extent: Extent, look: Callable[[], None] = lambda: None) -> int:
    """Return the CRC-32 of an extent as a file holds it. Local.

    Args:
        descriptor: of the file.
        extent: where it lies.
        look: called now and then.
    """
    found, seen, buffer = 0, 0, memoryview(bytearray(min(PIECE_NBYTES, max(extent[2], 1))))
    for _, position, nbytes in runs(extent):
        seen += nbytes
        while nbytes:
            got = os.preadv(descriptor, [buffer[:nbytes]], position)
            if got == 0:
                raise OSError(f"the file ends at byte {position}")
            found = crc32(buffer[:got], found)
            nbytes, position = nbytes - got, position + got
        if seen >= _LOOK_NBYTES:
            seen = 0
            look()
    return found


def check_parent() -> None:
    """Raise if the other end of standard input is gone; commands that wait there are left alone. Local."""
    poll = select.poll()
    poll.register(sys.stdin.fileno(), 0)  # errors and hang-up only
    if poll.poll(0):
        raise Orphaned


def serve(memory: memoryview) -> None:
    """Carry out commands until standard input ends."""
    writer = Writer(memory)
    for line in sys.stdin.buffer:
        try:
            answer = writer.answer(json.loads(line))
        except Orphaned:
            return
        except Exception as error:
            advice = "; check free space, quota and permissions there" if isinstance(error, OSError) else ""
            answer = {"failed": f"{type(error).__name__}: {error}{advice}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def main(descriptor: int, nbytes: int, parent: int) -> None:
    """Prepare the process and serve its rank."""
    # A signal to the whole job asks the ranks to stop in order; they need this process for their last checkpoint.
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    with contextlib.suppress(OSError, AttributeError):  # outside Linux the end of standard input must do
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)
    with (
        mmap.mmap(descriptor, nbytes, mmap.MAP_SHARED, mmap.PROT_READ) as shared,
        memoryview(shared) as memory,
        contextlib.suppress(BrokenPipeError),
    ):
        serve(memory)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
