"""Work of a rank in a thread beside it: copies in memory and calls of the file system, for which training need not wait."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import final

# A signal to the process is the main thread's, whose sleep it is to end.
_ASKED_TO_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@final
class Worker:
    """Does one piece of work at a time.

    Local. Work must not call MPI, which is initialised for one thread at a time that calls it in turn. The thread ends with its
    work; one that still works when the interpreter ends is cut off there, as by a kill.

    Args:
        name: of its threads, for debuggers.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def is_busy(self) -> bool:
        """Whether work is under way."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, work: Callable[[], None]) -> None:
        """Begin with some work; what was begun before must have ended.

        Raises:
            RuntimeError: work is under way, or the system has no thread left.
        """
        if self.is_busy:
            raise RuntimeError(f"{self._name} is at work")

        def run() -> None:
            signal.pthread_sigmask(signal.SIG_BLOCK, _ASKED_TO_STOP)
            try:
                work()
            except BaseException as error:  # whoever waits for the work raises it
                self._error = error

        self._error = None
        thread = threading.Thread(target=run, name=self._name, daemon=True)
        thread.start()
        self._thread = thread

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the end of the work, or for so long, and return whether it has ended. A signal's handler may raise meanwhile."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        return not self.is_busy

    def take_error(self) -> BaseException | None:
        """Return what the work that has ended raised, once."""
        error, self._error = self._error, None
        return error
