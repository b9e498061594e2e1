"""Turn SIGINT, SIGTERM and SIGUSR1 into a request to stop at the next step boundary."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

# SIGUSR1: launchers that kill their ranks soon after SIGTERM hand it on without doing so.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """Catch SIGINT, SIGTERM and SIGUSR1 while the context is open.

    The first one asks for a stop; a second SIGINT raises KeyboardInterrupt, as users expect.

    Attributes:
        requested: name of the signal that came last, or "".
    """

    def __init__(self) -> None:
        """Catch nothing yet."""
        self.requested = ""
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if name == self.requested == "SIGINT":
            signal.default_int_handler(number, frame)
        self.requested = name
