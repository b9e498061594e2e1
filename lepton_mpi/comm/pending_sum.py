"""Sums on their way, by the engine or by MPI itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.comm.host_arrays import upload

if TYPE_CHECKING:
    from lepton_mpi.runtime.mpi import MPI

# Values in one MPI_Allreduce: MPI counts in int.
_LONGEST_PLAIN = 2**30


class Pending(Protocol):
    """A sum on its way."""

    def finish(self) -> None:
        """Wait until the sum is in the output array. Local; may be called again."""

    def done(self) -> bool:
        """Return whether it is there, without waiting. Local."""


@final
class PlainSum:
    """A sum by MPI itself, behind the interface of the engine; by MPI_Allreduce, often the faster one, where it may block."""

    def __init__(self, comm: MPI.Intracomm, target: NDArray[np.float32], scale: float, blocking: bool) -> None:
        from lepton_mpi.runtime.mpi import MPI

        parts = [target[at : at + _LONGEST_PLAIN] for at in range(0, target.size, _LONGEST_PLAIN)]
        self._requests: list[MPI.Request] = []
        for part in parts:
            if blocking:
                comm.Allreduce(MPI.IN_PLACE, part, MPI.SUM)
            else:
                self._requests.append(comm.Iallreduce(MPI.IN_PLACE, part, MPI.SUM))
        self._target, self._scale = target, scale

    def progress(self) -> None:
        self._requests = [request for request in self._requests if not request.Test()]

    def finish(self, number: int) -> None:
        for request in self._requests:
            request.Wait()
        self._requests.clear()
        if self._scale != 1.0:
            self._target *= np.float32(self._scale)
            self._scale = 1.0

    def done(self, number: int) -> bool:
        return not self._requests


@final
class EngineSum:
    """A sum that the engine works on; `later` holds where it must be copied to in the end."""

    def __init__(
        self, engine: Any, number: int, later: tuple[NDArray[np.float32], Any] | None, way: str = "", nbytes: int = 0
    ) -> None:
        self._engine, self._number, self._later = engine, number, later
        self.way, self.nbytes = way, nbytes

    def finish(self) -> None:
        self._engine.finish(self._number)
        if self._later is not None:
            host, out = self._later
            self._later = None
            upload(host, out)

    def done(self) -> bool:
        self._engine.progress()
        return bool(self._engine.done(self._number))
