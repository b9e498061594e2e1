"""Batches made ahead of time by a thread, where making them takes long enough to be worth it."""

from __future__ import annotations

import math
import queue
import threading
import time
from types import TracebackType
from typing import Final, Protocol, final

from lepton_mpi.data.loader import Batch

# Batches that lie ready at most, besides the one in use and the one being made.
_DEPTH: Final = 2
# A batch that is made faster than this is not worth a thread: handing it over costs about as much, and the thread takes the
# interpreter from the one that trains.
_WORTHWHILE_S: Final = 2e-3
# How many batches are made and timed before the choice; the fastest counts, since the first ones open files.
_TIMED: Final = 4
# How often a thread that waits looks whether it should end.
_LOOK_S: Final = 0.1


class BatchSource(Protocol):
    """Whatever makes batches by position, as a `Loader` does."""

    def batch(self, epoch: int, position: int) -> Batch:
        """Return the batch that starts at a position of an epoch. Local."""
        ...


@final
class Prefetcher:
    """A source of batches that has the following ones ready. The batches are those of the source, in any case.

    The first few batches are made when they are asked for, and timed; only if even the fastest takes longer than handing it
    over from a thread, a thread makes the following ones ahead, at most two, so memory stays bounded. An error of the source
    is raised where the batch is asked for. To be used in a `with` block, which ends the thread.

    Args:
        source: makes the batches; with a thread, in the thread.
        always: use a thread at once, however fast the source is.

    Attributes:
        is_ahead: whether a thread is making batches.
    """

    def __init__(self, source: BatchSource, *, always: bool = False) -> None:
        self._source = source
        self._times_left = 0 if always else _TIMED
        self._fastest_s = math.inf
        self._thread: threading.Thread | None = None
        self._ready: queue.Queue[tuple[tuple[int, int], Batch | BaseException]] = queue.Queue(_DEPTH)
        self._ended = threading.Event()

    @property
    def is_ahead(self) -> bool:
        """Whether a thread is making batches."""
        return self._thread is not None

    def batch(self, epoch: int, position: int) -> Batch:
        """Return the batch that starts at a position of an epoch. Local.

        Raises:
            DataError: what the source raised.
        """
        if self._thread is not None:
            return self._take((epoch, position))
        begin = time.perf_counter()
        made = self._source.batch(epoch, position)
        self._fastest_s = min(self._fastest_s, time.perf_counter() - begin)
        self._times_left -= 1
        if self._times_left < 0 or (self._times_left == 0 and self._fastest_s > _WORTHWHILE_S):
            self._start(made.following)
        elif self._times_left == 0:
            self._times_left, self._fastest_s = _TIMED, math.inf  # it may become slow later on
        return made

    def close(self) -> None:
        """End the thread; batches that it made are dropped. Local; may be called twice."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._ended.set()
        while thread.is_alive():
            self._drop()
            thread.join(_LOOK_S)
        self._drop()
        self._ended.clear()

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _take(self, place: tuple[int, int]) -> Batch:
        at, made = self._ready.get()
        if at != place:  # whoever trains went elsewhere
            self.close()
            found = self._source.batch(*place)
            self._start(found.following)
            return found
        if isinstance(made, BaseException):
            self.close()
            raise made
        return made

    def _start(self, place: tuple[int, int]) -> None:
        self._thread = threading.Thread(target=self._work, args=(place,), name="prefetch", daemon=True)
        self._thread.start()

    def _work(self, place: tuple[int, int]) -> None:
        while not self._ended.is_set():
            made: Batch | BaseException
            try:
                made = self._source.batch(*place)
            except BaseException as error:  # for whoever asks for it
                made = error
            while not self._ended.is_set():
                try:
                    self._ready.put((place, made), timeout=_LOOK_S)
                    break
                except queue.Full:
                    continue
            if isinstance(made, BaseException):
                return
            place = made.following

    def _drop(self) -> None:
        try:
            while True:
                self._ready.get_nowait()
        except queue.Empty:
            return
