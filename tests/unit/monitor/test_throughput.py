"""Samples a second, by a clock that the test moves."""

from __future__ import annotations

import pytest

from lepton_mpi.monitor.throughput import Throughput


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def add_steps(throughput: Throughput, clock: Clock, num_steps: int, step_s: float) -> None:
    for _ in range(num_steps):
        clock.now += step_s
        throughput.add(100)


def test_before_any_sample_both_rates_are_zero(clock: Clock) -> None:
    throughput = Throughput(clock=clock)
    assert (throughput.rate(), throughput.average()) == (0.0, 0.0)
    throughput.add(10)  # no time has passed
    assert (throughput.rate(), throughput.average()) == (0.0, 0.0)


def test_the_window_forgets_and_the_average_does_not(clock: Clock) -> None:
    throughput = Throughput(window_s=10.0, clock=clock)
    add_steps(throughput, clock, num_steps=100, step_s=1.0)
    assert throughput.rate() == throughput.average() == pytest.approx(100.0)
    add_steps(throughput, clock, num_steps=400, step_s=0.25)
    assert throughput.rate() == pytest.approx(400.0)
    assert throughput.average() == pytest.approx(50_000 / 200)


def test_before_a_window_has_passed_the_rate_is_the_average(clock: Clock) -> None:
    throughput = Throughput(window_s=1000.0, clock=clock)
    add_steps(throughput, clock, num_steps=3, step_s=2.0)
    assert throughput.rate() == throughput.average() == pytest.approx(50.0)


def test_many_short_steps_are_measured_with_few_points(clock: Clock) -> None:
    throughput = Throughput(window_s=1.0, clock=clock)
    add_steps(throughput, clock, num_steps=50_000, step_s=1e-4)
    assert throughput.rate() == pytest.approx(1e6, rel=1e-6)
    assert len(throughput._points) <= 66


def test_pauses_are_left_out_even_when_they_fail(clock: Clock) -> None:
    throughput = Throughput(window_s=10.0, clock=clock)
    add_steps(throughput, clock, num_steps=5, step_s=1.0)
    with pytest.raises(KeyError), throughput.paused():
        clock.now += 1000.0
        raise KeyError
    add_steps(throughput, clock, num_steps=5, step_s=1.0)
    assert throughput.rate() == throughput.average() == pytest.approx(100.0)
