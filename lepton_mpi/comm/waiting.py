"""Wait for MPI without taking the core from the rank that is waited for, and not for ever."""

from __future__ import annotations

import logging
import time

from lepton_mpi.errors import StallError
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.runtime.threads import is_oversubscribed

# Pauses between looks: the first about as long as a message inside a node takes, the last as long
# as nobody would notice in a step. MPI libraries poll without a pause, and a rank that polls
# keeps another from working: 16 ranks on 2 cores spent 3 ms on a message instead of 1 ms.
_FIRST_PAUSE_S = 20e-6
_LAST_PAUSE_S = 500e-6
# Where every rank has a core: how long to look without a pause before somebody else may have it.
_BUSY_S = 0.05
# After how long a wait is worth a line in the log, and after how long it counts as lost. The ranks
# of a job meet many times a second; minutes apart are only the slowest loading or a dead peer.
_REMARKABLE_S = 60.0
STALL_S = 600.0

_log = logging.getLogger(__name__)


def wait(request: MPI.Request, what: str = "a message", stall_s: float = STALL_S) -> None:
    """Return when a request is complete. Local.

    Args:
        request: a request of a non-blocking call.
        what: what is waited for, in words, for messages.
        stall_s: give up after so many seconds.

    Raises:
        StallError: it did not complete in time.
    """
    if request.Test():
        return
    start = time.monotonic()
    busy_s = 0.0 if is_oversubscribed() else _BUSY_S
    remarked, pause_s = False, _FIRST_PAUSE_S
    while not request.Test():
        waited_s = time.monotonic() - start
        if waited_s < busy_s:
            continue
        if waited_s > stall_s:
            raise StallError(
                f"waited {waited_s:.0f} s for {what}: another rank hangs, was stopped, or does not take part. Look for the rank "
                "whose log ends first"
            )
        if waited_s > _REMARKABLE_S and not remarked:
            _log.warning("waiting for %s for %.0f s", what, waited_s)
            remarked = True
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LAST_PAUSE_S)
