"""Work in a thread beside the main one."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from lepton_mpi.checkpoint.worker import Worker


def test_it_works_beside_and_says_when_it_is_done():
    worker, go, done = Worker("test"), threading.Event(), []
    assert not worker.is_busy
    assert worker.wait()
    worker.start(lambda: done.append(go.wait(30)))
    assert worker.is_busy
    assert not worker.wait(0.0)
    with pytest.raises(RuntimeError, match="test is at work"):
        worker.start(lambda: None)
    go.set()
    assert worker.wait(30.0)
    assert done == [True]
    assert worker.take_error() is None


@pytest.mark.parametrize("error", [OSError(28, "No space left"), SystemExit(3)])
def test_what_it_raises_is_told_once(error):
    def work():
        raise error

    worker = Worker("test")
    worker.start(work)
    assert worker.wait(30.0)
    assert worker.take_error() is error
    assert worker.take_error() is None
    worker.start(work)
    worker.wait(30.0)
    worker.start(lambda: None)  # what came before does not count for it
    assert worker.wait(30.0)
    assert worker.take_error() is None


def test_signals_end_the_sleep_of_the_main_thread():
    worker, stop, handled = Worker("test"), threading.Event(), []
    worker.start(lambda: stop.wait(30) and None)
    earlier = signal.signal(signal.SIGUSR1, lambda number, frame: handled.append(threading.current_thread()))
    try:
        threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGUSR1)).start()
        deadline = time.monotonic() + 30
        while not handled and time.monotonic() < deadline:
            time.sleep(0.005)
        assert handled == [threading.main_thread()]
    finally:
        signal.signal(signal.SIGUSR1, earlier)
        stop.set()
    assert worker.wait(30.0)
