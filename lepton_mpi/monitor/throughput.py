"""How many samples a second pass through training."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, final

# A window is kept as this many points, however many steps it holds.
_POINTS_PER_WINDOW: Final = 64


@final
class Throughput:
    """Samples a second over a sliding window and over all, from the moment it is made.

    Local.

    Args:
        window_s: length of the sliding window, seconds.
        clock: monotonic clock, seconds.
    """

    def __init__(self, window_s: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._window_s = window_s
        self._clock = clock
        self._paused_s = 0.0
        self._num_samples = 0
        self._start = self._last = clock()
        self._points: deque[tuple[float, int]] = deque([(self._start, 0)])

    def add(self, num_samples: int) -> None:
        """Count samples that are done now. Local."""
        now = self._last = self._clock() - self._paused_s
        self._num_samples += num_samples
        points = self._points
        if now - points[-1][0] >= self._window_s / _POINTS_PER_WINDOW:
            points.append((now, self._num_samples))
        while len(points) > 1 and points[1][0] <= now - self._window_s:
            points.popleft()

    def rate(self) -> float:
        """Return samples a second over the last window (or all, while shorter); 0 before any. Local."""
        start, num_before = self._points[0]
        return _per_second(self._num_samples - num_before, self._last - start)

    @property
    def duration_s(self) -> float:
        """Seconds from the start to the last `add`, pauses left out."""
        return self._last - self._start

    def average(self) -> float:
        """Return samples a second from the start to the last `add`; 0 before any. Local."""
        return _per_second(self._num_samples, self.duration_s)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of the block out of both rates, e.g. an evaluation. Local."""
        begin = self._clock()
        try:
            yield
        finally:
            self._paused_s += self._clock() - begin


def _per_second(num_samples: int, duration_s: float) -> float:
    return num_samples / duration_s if duration_s > 0.0 else 0.0
