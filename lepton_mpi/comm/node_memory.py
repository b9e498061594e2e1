"""One shared-memory segment a node and run, cut into named arrays."""

from __future__ import annotations

import os
import secrets
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lepton_mpi import native
from lepton_mpi.comm.agreement import raise_together
from lepton_mpi.comm.contract import collective
from lepton_mpi.errors import SharedMemoryError
from lepton_mpi.runtime.mpi import MPI

_ALIGNMENT = 4096  # a page, so that arrays of different owners never share one


class NodeMemory:
    """Zeroed memory that all ranks of a node map, freed by the system when the last of them ends.

    The segment is unlinked as soon as all have mapped it, so nothing stays behind even after
    SIGKILL. Arrays are views; they keep the mapping alive.
    """

    @collective("node")
    def __init__(self, node: MPI.Intracomm, nbytes: int) -> None:
        """Make and map the segment.

        Collective over node.

        Args:
            node: ranks that share memory; one rank may use private memory.
            nbytes: size in bytes, equal on all ranks.

        Raises:
            LeptonError: the node has no room in its shared memory; the message says how much is needed.
        """
        nbytes = max(nbytes, _ALIGNMENT)
        segment, error = None, None
        name = f"/lepton-{os.getpid()}-{secrets.token_hex(6)}"
        if node.Get_size() == 1:
            segment = native.Segment.anonymous(nbytes)
        elif node.Get_rank() == 0:
            try:
                segment = native.Segment.create(name, nbytes)
            except OSError as cause:
                error = cause
        name = node.bcast(name, root=0)
        raise_together(node, _explain(error, nbytes))
        try:
            segment = segment or native.Segment.open(name, nbytes)
        except OSError as cause:
            error = cause
        try:
            raise_together(node, _explain(error, nbytes))  # also: all have mapped it
        finally:
            if segment is not None:
                segment.unlink()
        assert segment is not None
        self.nbytes = nbytes
        self._bytes: NDArray[np.uint8] = np.frombuffer(memoryview(segment), np.uint8)

    def array(self, start: int, count: int, dtype: DTypeLike) -> NDArray[Any]:
        """Return `count` values at byte `start` as an array on the shared memory. Local."""
        size = np.dtype(dtype).itemsize * count
        array: NDArray[Any] = self._bytes[start : start + size].view(dtype)
        return array


class MemoryPlan:
    """Lay out arrays one behind the other, each on a page of its own. Local."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.nbytes = 0

    def place(self, nbytes: int) -> int:
        """Reserve bytes and return where they start."""
        start = self.nbytes
        self.nbytes += -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        return start


def _explain(error: OSError | None, nbytes: int) -> Exception | None:
    if error is None:
        return None
    return SharedMemoryError(
        f"cannot share {nbytes / 2**20:.0f} MiB between the ranks of this node: {error.strerror}. Enlarge /dev/shm (in a "
        "container: --shm-size), or set grid.ranks_per_node = 1 to give every rank memory of its own"
    )
