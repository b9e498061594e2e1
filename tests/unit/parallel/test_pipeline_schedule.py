"""Schedules on paper, for every size that matters: complete, free of deadlock, and with the memory and bubble they state."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise, product

import pytest

from lepton_mpi.errors import ConfigError
from lepton_mpi.parallel.schedules.forward_only import ForwardOnly
from lepton_mpi.parallel.schedules.registry import SCHEDULES, choose_virtual_stages
from lepton_mpi.parallel.schedules.schedule import Action, Kind, PassCosts, PipelineShape, Schedule, with_messages
from lepton_mpi.parallel.schedules.simulation import ScheduleError, simulate, simulate_orders

# (name, chunks): all kinds, the interleaved one with one to four chunks.
KINDS = [(name, 1) for name in SCHEDULES] + [("interleaved", chunks) for chunks in (2, 3, 4)]
EQUAL = PassCosts(1, 1, 1)
PASSES = (Kind.FORWARD, Kind.BACKWARD_INPUT, Kind.BACKWARD_WEIGHT)


def check(schedule: Schedule, shape: PipelineShape, costs: PassCosts) -> None:
    """Run a schedule against itself. The simulation refuses a pass that comes twice, too early, or out of order."""
    found = simulate(schedule, shape, costs)
    stages, passes = range(shape.stages), shape.micro_batches * shape.chunks
    assert found.busy == (passes * costs.work,) * shape.stages  # with the refusals: each pass exactly once
    assert found.peak_in_flight == tuple(schedule.peak_in_flight(stage, shape) for stage in stages), shape
    assert found.makespan == passes * costs.work + schedule.idle(shape, costs), shape
    assert found.bubble == pytest.approx(schedule.bubble(shape, costs), abs=1e-12)


@pytest.mark.parametrize(("name", "chunks"), KINDS)
def test_every_pipeline_of_up_to_16_stages_and_64_micro_batches(name: str, chunks: int) -> None:
    for stages, micro_batches in product(range(1, 17), range(1, 65)):
        check(SCHEDULES[name], PipelineShape(stages, micro_batches, chunks), EQUAL)


@pytest.mark.parametrize("costs", [PassCosts(2, 3, 1), PassCosts(1, 2, 1), PassCosts(3, 2, 2), PassCosts(4, 4, 3)], ids=str)
@pytest.mark.parametrize(("name", "chunks"), KINDS)
def test_bubbles_with_passes_of_different_costs(name: str, chunks: int, costs: PassCosts) -> None:
    for stages, micro_batches in product(range(1, 7), (1, 2, 3, 5, 6, 8, 11, 13)):
        check(SCHEDULES[name], PipelineShape(stages, micro_batches, chunks), costs)


@pytest.mark.parametrize("costs", [PassCosts(1, 1, 2), PassCosts(3, 1, 2), PassCosts(1, 2, 2)], ids=str)
def test_weights_that_cost_more_than_they_can_fill(costs: PassCosts) -> None:
    for stages, micro_batches in product(range(1, 9), range(1, 20)):
        check(SCHEDULES["zero_bubble"], PipelineShape(stages, micro_batches), costs)


@pytest.mark.parametrize("chunks", range(1, 5))
def test_forward_only(chunks: int) -> None:
    for stages, micro_batches in product(range(1, 9), range(20)):
        shape = PipelineShape(stages, micro_batches, chunks)
        found = simulate(ForwardOnly(), shape, PassCosts(2, 0, 0))
        assert found.busy == (2 * micro_batches * chunks,) * stages
        if micro_batches:
            assert found.makespan == 2 * micro_batches * chunks + ForwardOnly().idle(shape, PassCosts(2, 0, 0)), shape
            assert found.bubble == pytest.approx(ForwardOnly().bubble(shape, PassCosts(2, 0, 0)))
            assert ForwardOnly().peak_in_flight(0, shape) == 0


@pytest.mark.parametrize("micro_batches", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("stages", range(1, 6))
@pytest.mark.parametrize(("name", "chunks"), KINDS)
def test_messages_of_two_stages_match(name: str, chunks: int, stages: int, micro_batches: int) -> None:
    shape = PipelineShape(stages, micro_batches, chunks)
    sent: dict[tuple[Kind, int], list[int]] = {}
    received: dict[tuple[Kind, int], list[int]] = {}
    for stage in range(stages):
        actions = list(SCHEDULES[name].actions(stage, shape))
        assert set(Counter(actions).values()) == {1}
        for kind, m, c in actions:
            virtual = c * stages + stage
            if kind is Kind.SEND_ACTIVATION:
                sent.setdefault((kind, virtual + 1), []).append(m)
            elif kind is Kind.SEND_GRADIENT:
                sent.setdefault((kind, virtual), []).append(m)
            elif kind is Kind.RECEIVE_ACTIVATION:
                received.setdefault((Kind.SEND_ACTIVATION, virtual), []).append(m)
            elif kind is Kind.RECEIVE_GRADIENT:
                received.setdefault((Kind.SEND_GRADIENT, virtual + 1), []).append(m)
    assert sent == received  # what has one tag comes in the order in which it is waited for
    assert all(order == list(range(micro_batches)) for order in sent.values())
    assert len(sent) == 2 * (stages * chunks - 1)


@pytest.mark.parametrize(("name", "chunks"), KINDS)
def test_messages_stand_where_they_hold_nobody_up(name: str, chunks: int) -> None:
    shape = PipelineShape(3, 5, chunks)
    for stage in range(3):
        actions = list(SCHEDULES[name].actions(stage, shape))
        for before, after in pairwise(actions):
            if after.kind in (Kind.SEND_ACTIVATION, Kind.SEND_GRADIENT):
                made = Kind.FORWARD if after.kind is Kind.SEND_ACTIVATION else Kind.BACKWARD_INPUT
                assert before == (made, *after[1:])
            if before.kind in (Kind.RECEIVE_ACTIVATION, Kind.RECEIVE_GRADIENT):
                assert after[1:] == before[1:]
                assert after.kind in (Kind.FORWARD, Kind.BACKWARD_INPUT, Kind.BACKWARD)


def test_both_halves_are_one_where_nobody_waits_for_the_input_gradient() -> None:
    order = [Action(kind, m) for m in range(2) for kind in PASSES]
    assert [a.kind for a in with_messages(order, 0, PipelineShape(1, 2))] == [Kind.FORWARD, Kind.BACKWARD] * 2
    apart = [Action(Kind.FORWARD, 0), Action(Kind.FORWARD, 1), *(Action(kind, m) for kind in PASSES[1:] for m in range(2))]
    assert list(with_messages(apart, 0, PipelineShape(1, 2))) == apart


def test_a_transfer_delays_what_waits_for_it() -> None:
    shape = PipelineShape(3, 1)
    assert simulate(SCHEDULES["1f1b"], shape, PassCosts(1, 1, 1, transfer=10)).makespan == 7 + 4 * 10
    assert simulate(SCHEDULES["interleaved"], PipelineShape(1, 1, 3), PassCosts(1, 1, 1, transfer=0)).makespan == 9


def wrong(*, swap: tuple[int, int] | None = None, replace: tuple[int, Action] | None = None) -> list[list[Action]]:
    """Return the orders of 1F1B on two stages and two micro-batches with a mistake on the last stage."""
    orders = [list(SCHEDULES["1f1b"].order(stage, PipelineShape(2, 2))) for stage in range(2)]
    if swap:
        a, b = swap
        orders[1][a], orders[1][b] = orders[1][b], orders[1][a]
    if replace:
        orders[1][replace[0]] = replace[1]
    return orders


@pytest.mark.parametrize(
    "orders",
    [
        wrong(swap=(0, 3)),  # the second micro-batch first
        wrong(swap=(1, 2)),  # weights before the input
        wrong(replace=(5, Action(Kind.BACKWARD_WEIGHT, 0))),  # one twice
        wrong(replace=(0, Action(Kind.SEND_ACTIVATION, 0))),  # no pass at all
    ],
)
def test_the_simulation_refuses_a_wrong_order(orders: list[list[Action]]) -> None:
    with pytest.raises(ScheduleError):
        simulate_orders(orders, PipelineShape(2, 2), EQUAL)


def test_the_simulation_sees_a_deadlock() -> None:
    first = [Action(kind, m) for m in range(2) for kind in PASSES]  # waits for a gradient that needs its second micro-batch
    last = sorted(first, key=lambda action: action.kind is not Kind.FORWARD)
    with pytest.raises(ScheduleError, match="no stage can go on"):
        simulate_orders([first, last], PipelineShape(2, 2), EQUAL)


def test_less_bubble_in_the_memory_that_is_promised() -> None:
    shape = PipelineShape(8, 32)
    bubbles = {name: SCHEDULES[name].bubble(shape, EQUAL) for name in ("gpipe", "1f1b", "zero_bubble")}
    assert bubbles["zero_bubble"] < bubbles["1f1b"] == bubbles["gpipe"]
    peaks = {name: max(SCHEDULES[name].peak_in_flight(stage, shape) for stage in range(8)) for name in bubbles}
    assert peaks == {"gpipe": 32, "1f1b": 8, "zero_bubble": 8}
    # Four chunks of a quarter each.
    chunk = PassCosts(0.25, 0.25, 0.25)
    assert SCHEDULES["interleaved"].idle(PipelineShape(8, 32, 4), chunk) == SCHEDULES["1f1b"].idle(shape, EQUAL) / 4


def test_how_many_virtual_stages() -> None:
    assert choose_virtual_stages("1f1b", 0, 4, 9) == choose_virtual_stages("gpipe", 1, 4, 9) == 1
    assert [choose_virtual_stages("interleaved", 0, stages, 7) for stages in (1, 3, 4)] == [2, 2, 1]
    assert choose_virtual_stages("interleaved", 3, 2, 7) == 3
    with pytest.raises(ConfigError, match=r"grid\.virtual_stages: 2 need train\.schedule = interleaved, which is gpipe"):
        choose_virtual_stages("gpipe", 2, 2, 8)
    with pytest.raises(ConfigError, match="2 stages of 4 need 8 layers, the model has 7"):
        choose_virtual_stages("interleaved", 4, 2, 7)
