"""A board in memory that the ranks of a node share, where each keeps what it did last."""

from __future__ import annotations

import json
import mmap
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lepton_mpi.comm.collective_mark import unchecked_collective
from lepton_mpi.comm.strict.record import RECORD_NBYTES, Record, name_ranks
from lepton_mpi.runtime.mpi import MPI

# A state: two records and some numbers.
STATE_NBYTES = 2 * RECORD_NBYTES + 128
# A slot has two copies and a byte that says which one counts, so that nobody reads half of a state.
_SLOT_NBYTES = 2 * STATE_NBYTES + 64
_SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class State:
    """What a rank did last.

    Attributes:
        collective: the last collective, or None before the first.
        message: the last message, if it came after that.
        waiting: whether it waits in the later of the two for other ranks.
        since_s: when that began, or ended; in the system's monotonic time.
    """

    collective: Record | None = None
    message: Record | None = None
    waiting: bool = False
    since_s: float = 0.0

    def pack(self) -> bytes:
        """Return the state as `STATE_NBYTES` bytes. Local."""
        records = [None if r is None else r.pack().decode().rstrip() for r in (self.collective, self.message)]
        head = json.dumps([self.waiting, self.since_s, *(r is not None for r in records)])
        return "\n".join([head, *(r or "" for r in records)]).encode().ljust(STATE_NBYTES)

    @classmethod
    def unpack(cls, packed: bytes) -> State:
        """Return the state that `pack` packed. Local."""
        head, *texts = packed.decode().rstrip(" ").split("\n")
        waiting, since_s, *_ = json.loads(head)
        collective, message = (Record.unpack(text.encode()) if text else None for text in texts)
        return cls(collective, message, waiting, since_s)

    def describe(self, rank: int, now_s: float) -> str:
        """Return in words where a rank is. Local.

        Args:
            rank: whose state it is.
            now_s: the present, in the time of `since_s`.
        """
        last, ago = self.message or self.collective, f"{max(now_s - self.since_s, 0.0):.1f} s"
        if last is None:
            return f"{name_ranks([rank])} has not called any collective yet"
        if self.waiting:
            return f"{name_ranks([rank])} waits for {ago} in {last}"
        was = f", before it {self.collective}" if self.message and self.collective else ""
        return f"{name_ranks([rank])} has called nothing for {ago} since {last}{was}"


class Board:
    """The states of the ranks of a node. Local, once it is made."""

    @unchecked_collective("node")
    def __init__(self, node: MPI.Intracomm) -> None:
        """Make and map the board.

        Collective over node; not on a communicator that is checked itself.
        """
        nbytes, path = node.Get_size() * _SLOT_NBYTES, ""
        if node.Get_rank() == 0:
            folder = _SHARED_MEMORY if _SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())
            descriptor, path = tempfile.mkstemp(prefix=f"lepton-{os.getpid()}-strict-", dir=folder)
            os.ftruncate(descriptor, nbytes)
        path = node.bcast(path, root=0)
        if node.Get_rank() != 0:
            descriptor = os.open(path, os.O_RDWR)
        self._map = mmap.mmap(descriptor, nbytes)
        os.close(descriptor)
        node.Barrier()  # all have mapped it
        if node.Get_rank() == 0:
            os.unlink(path)
        self._own = node.Get_rank() * _SLOT_NBYTES

    def write(self, state: State) -> None:
        """Say what this rank does."""
        other = 1 - self._map[self._own]
        start = self._own + 64 + other * STATE_NBYTES
        self._map[start : start + STATE_NBYTES] = state.pack()
        self._map[self._own] = other

    def read(self, node_rank: int) -> State:
        """Return what a rank of the node last said."""
        slot = node_rank * _SLOT_NBYTES
        start = slot + 64 + self._map[slot] * STATE_NBYTES
        packed = self._map[start : start + STATE_NBYTES]
        return State.unpack(packed) if packed[0] else State()
