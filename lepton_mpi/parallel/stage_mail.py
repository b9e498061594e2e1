"""Messages between the virtual stages of a pipeline."""

from __future__ import annotations

from collections import defaultdict, deque
from typing import Any

import numpy as np

from lepton_mpi.comm.waiting import wait
from lepton_mpi.nn.layer import Shapes
from lepton_mpi.ops.array_module import array_module
from lepton_mpi.runtime.mpi import MPI


class StageMail:
    """Send and receive the arrays of one pass.

    A message has the tag of the virtual stage and the direction that it belongs to. MPI keeps messages of one tag in order, and
    schedules keep the micro-batches of one chunk in order, so each comes to whom it is for. Activations of several arrays travel
    as several messages of one tag. Sends never block: their buffers are kept until they have left.
    """

    def __init__(self, comm: MPI.Intracomm) -> None:
        """Begin with nothing on its way.

        Args:
            comm: the stages, in order.
        """
        self._comm = comm
        self._rank = comm.Get_rank()
        self._sent: list[tuple[MPI.Request, Any]] = []
        self._posted: dict[int, deque[list[tuple[MPI.Request, Any]]]] = defaultdict(deque)
        self._local: dict[int, deque[Any]] = defaultdict(deque)

    def send(self, x: Any, to: int, tag: int) -> None:
        """Start sending; to this very rank by handing over. Local.

        Args:
            x: an array or a tuple of arrays, on any device.
            to: stage that receives.
            tag: of the virtual stage and the direction.
        """
        if to == self._rank:
            self._local[tag].append(x)
            return
        for array in x if isinstance(x, tuple) else (x,):
            host = np.ascontiguousarray(array if isinstance(array, np.ndarray) else array_module(array).asnumpy(array))
            self._sent.append((self._comm.Isend(host, to, tag), host))

    def post(self, rows: int, shapes: Shapes, source: int, tag: int) -> None:
        """Start receiving. Local.

        Args:
            rows: samples of the micro-batch.
            shapes: shape of one sample of each array.
            source: stage that sends.
            tag: of the virtual stage and the direction.
        """
        if source != self._rank:
            hosts = [np.empty((rows, *shape), np.float32) for shape in shapes]
            self._posted[tag].append([(self._comm.Irecv(host, source, tag), host) for host in hosts])

    def receive(self, source: int, tag: int, like: Any) -> Any:
        """Return the message that was posted first of those of a tag, and wait for it. Local.

        Args:
            source: stage that sends.
            tag: of the virtual stage and the direction.
            like: module of the arrays that are returned, numpy or cupy.

        Raises:
            StallError: it did not come.
        """
        if source == self._rank:
            return self._local[tag].popleft()
        arrays = []
        for request, host in self._posted[tag].popleft():
            wait(request, f"the message of stage {source}")
            arrays.append(like.asarray(host))
        return arrays[0] if len(arrays) == 1 else tuple(arrays)

    def move(self) -> None:
        """Give back the buffers of what has left; this is also when MPI gets to move long messages. Local."""
        self._sent = [(request, host) for request, host in self._sent if not request.Test()]

    def flush(self) -> None:
        """Wait until all that was sent has left. Local.

        Raises:
            StallError: the next stage does not receive.
        """
        for request, _ in self._sent:
            wait(request, "the next stage to receive")
        self._sent.clear()
