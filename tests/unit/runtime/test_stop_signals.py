"""Signals that ask for a stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from lepton_mpi.runtime.stop_signals import StopSignals


@pytest.fixture(autouse=True)
def _handlers_come_back() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_noted_and_harms_nothing(number: signal.Signals) -> None:
    with StopSignals() as stop:
        assert stop.requested == ""
        signal.raise_signal(number)
        assert stop.requested == number.name
    assert stop.requested == number.name


def test_a_second_interrupt_ends_at_once() -> None:
    with StopSignals() as stop, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
        assert stop.requested == "SIGINT"
        signal.raise_signal(signal.SIGINT)


def test_launchers_may_send_several_signals_for_one_interrupt() -> None:
    with StopSignals() as stop:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
        assert stop.requested == "SIGINT"


def test_handlers_come_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), StopSignals():
        _ = 1 / 0
