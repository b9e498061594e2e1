"""Schedules, run in one process: no deadlock, everything once, and no more in flight than promised."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator

import pytest

from lepton_mpi.parallel.schedule import Action, Kind, forward_only, one_forward_one_backward

Schedule = Callable[[int, int, int], Iterator[Action]]
_BACKWARDS = (Kind.BACKWARD, Kind.BACKWARD_INPUT)


def simulate(schedule: Schedule, stages: int, micro_batches: int) -> tuple[list[list[Action]], list[int]]:
    """Run all stages with messages that arrive in order; return what each did and its most micro-batches in flight.

    Raises:
        AssertionError: a deadlock, a receive that finds another micro-batch, or an action before its input is there.
    """
    todo = [deque(schedule(stage, stages, micro_batches)) for stage in range(stages)]
    done: list[list[Action]] = [[] for _ in range(stages)]
    activations: list[deque[int]] = [deque() for _ in range(stages)]  # on their way to a stage
    gradients: list[deque[int]] = [deque() for _ in range(stages)]
    held: list[set[tuple[str, int]]] = [set() for _ in range(stages)]
    most = [0] * stages
    while any(todo):
        moved = False
        for s in range(stages):
            while todo[s]:
                action, m = todo[s][0], todo[s][0].micro_batch
                mail = {Kind.RECEIVE_ACTIVATION: activations[s], Kind.RECEIVE_GRADIENT: gradients[s]}.get(action.kind)
                if mail is not None:
                    if not mail:
                        break
                    assert mail.popleft() == m
                act(action, s, stages, held[s], activations, gradients)
                most[s] = max(most[s], sum(kind == "saved" for kind, _ in held[s]))
                done[s].append(todo[s].popleft())
                moved = True
        assert moved, f"deadlock: {[list(actions)[:1] for actions in todo]}"
    assert not any(activations + gradients), "a message was never received"
    return done, most


def act(
    action: Action, s: int, stages: int, held: set[tuple[str, int]], activations: list[deque[int]], gradients: list[deque[int]]
) -> None:
    """Do one action of stage s, if what it needs is held."""
    m = action.micro_batch
    needs = {
        Kind.FORWARD: "input" if s > 0 else None,
        Kind.SEND_ACTIVATION: "output",
        Kind.BACKWARD: "saved",
        Kind.BACKWARD_INPUT: "saved",
        Kind.SEND_GRADIENT: "dx",
        Kind.BACKWARD_WEIGHT: "pending",
    }.get(action.kind)
    if needs is not None:
        held.remove((needs, m))  # KeyError: the action came too early or twice
    if action.kind in _BACKWARDS and s < stages - 1:
        held.remove(("dy", m))
    if action.kind is Kind.RECEIVE_ACTIVATION:
        held.add(("input", m))
    elif action.kind is Kind.FORWARD:
        held |= {("saved", m), ("output", m)} if s < stages - 1 else {("saved", m)}
    elif action.kind is Kind.SEND_ACTIVATION:
        activations[s + 1].append(m)
    elif action.kind is Kind.RECEIVE_GRADIENT:
        held.add(("dy", m))
    elif action.kind is Kind.BACKWARD_INPUT:
        held |= {("dx", m), ("pending", m)}
    elif action.kind is Kind.SEND_GRADIENT:
        gradients[s - 1].append(m)


@pytest.mark.parametrize("micro_batches", range(1, 13))
@pytest.mark.parametrize("stages", range(1, 7))
def test_one_forward_one_backward(stages: int, micro_batches: int) -> None:
    done, most = simulate(one_forward_one_backward, stages, micro_batches)
    for s, actions in enumerate(done):
        count = Counter((a.kind, a.micro_batch) for a in actions)
        assert set(count.values()) == {1}
        backward = [Kind.BACKWARD] if s == 0 else [Kind.BACKWARD_INPUT, Kind.BACKWARD_WEIGHT]
        for kind in (Kind.FORWARD, *backward):
            assert [a.micro_batch for a in actions if a.kind is kind] == list(range(micro_batches))
        assert most[s] == min(stages - s, micro_batches)
        # The last micro-batch ends the step: only then gradients are complete and buckets may start.
        assert actions[-1] == Action(backward[-1], micro_batches - 1)


@pytest.mark.parametrize("micro_batches", [0, 1, 2, 7])
@pytest.mark.parametrize("stages", range(1, 7))
def test_forward_only(stages: int, micro_batches: int) -> None:
    done, _ = simulate(forward_only, stages, micro_batches)
    for actions in done:
        assert [a.micro_batch for a in actions if a.kind is Kind.FORWARD] == list(range(micro_batches))
        assert not {a.kind for a in actions} & {Kind.BACKWARD, Kind.BACKWARD_INPUT, Kind.BACKWARD_WEIGHT}


def test_input_gradients_leave_before_weights_are_worked_on() -> None:
    kinds = [a.kind for a in one_forward_one_backward(1, 3, 4)]
    for i, kind in enumerate(kinds):
        if kind is Kind.BACKWARD_WEIGHT:
            assert kinds[i - 1] is Kind.SEND_GRADIENT


def test_the_simulation_sees_a_schedule_that_is_wrong() -> None:
    def greedy(stage: int, stages: int, num: int) -> Iterator[Action]:
        """Wait for a gradient before the next stage has an activation."""
        actions = list(one_forward_one_backward(stage, stages, num))
        return iter(sorted(actions, key=lambda a: a.kind is not Kind.RECEIVE_GRADIENT))

    with pytest.raises(AssertionError, match="deadlock"):
        simulate(greedy, 2, 2)
