"""Waiting for a request that completes soon, late, or never."""

from __future__ import annotations

import logging
import time

import numpy as np
import pytest

from lepton_mpi.comm import waiting
from lepton_mpi.comm.waiting import wait
from lepton_mpi.errors import StallError
from lepton_mpi.runtime.mpi import MPI, start_mpi


def receive(tag: int) -> tuple[MPI.Intracomm, MPI.Request, np.ndarray]:
    start_mpi()
    comm, buffer = MPI.COMM_SELF.Dup(), np.zeros(3)
    return comm, comm.Irecv(buffer, 0, tag), buffer


@pytest.mark.parametrize("oversubscribed", [False, True])
def test_returns_when_the_message_is_there(monkeypatch: pytest.MonkeyPatch, oversubscribed: bool) -> None:
    monkeypatch.setattr(waiting, "is_oversubscribed", lambda: oversubscribed)
    comm, request, buffer = receive(1)
    comm.Isend(np.arange(3.0), 0, 1).Wait()
    wait(request)
    assert buffer.tolist() == [0, 1, 2]
    comm.Free()


@pytest.mark.parametrize("oversubscribed", [False, True])
def test_gives_up_and_says_what_it_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, oversubscribed: bool
) -> None:
    monkeypatch.setattr(waiting, "is_oversubscribed", lambda: oversubscribed)
    monkeypatch.setattr(waiting, "_REMARKABLE_S", 0.1)
    comm, request, _ = receive(2)
    start = time.monotonic()
    with caplog.at_level(logging.WARNING), pytest.raises(StallError, match="for the activations: another rank hangs"):
        wait(request, "the activations", stall_s=0.3)
    assert 0.3 <= time.monotonic() - start < 3
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    request.Cancel()
    request.Wait()
    comm.Free()
