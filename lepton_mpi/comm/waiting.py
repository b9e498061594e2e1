"""Wait for MPI without taking the core from the rank that is waited for."""

from __future__ import annotations

import time

from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.runtime.threads import is_oversubscribed

# Pauses between looks: the first about as long as a message inside a node takes, the last as long
# as nobody would notice in a step. MPI libraries poll without a pause, and a rank that polls
# keeps another from working: 16 ranks on 2 cores spent 3 ms on a message instead of 0.2 ms.
_FIRST_PAUSE_S = 20e-6
_LAST_PAUSE_S = 500e-6


def wait(request: MPI.Request) -> None:
    """Return when a request is complete. Local.

    With a core for every rank this is MPI_Wait; with more ranks than cores, looks and pauses alternate.
    """
    if not is_oversubscribed():
        request.Wait()
        return
    pause_s = _FIRST_PAUSE_S
    while not request.Test():
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LAST_PAUSE_S)
