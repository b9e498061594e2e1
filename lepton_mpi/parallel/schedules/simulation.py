"""Run a schedule on paper: how long it takes, what it holds, and whether it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lepton_mpi.parallel.schedules.schedule import Action, Kind, PassCosts, PipelineShape, Schedule


class ScheduleError(Exception):
    """A schedule that stands still, or does something too early, twice or never."""


@dataclass(frozen=True)
class Simulated:
    """What came out.

    Attributes:
        makespan: time until all stages are done.
        busy: time that each stage works.
        peak_in_flight: most (micro-batch, chunk) pairs that each stage held between forward pass and last backward half.
    """

    makespan: float
    busy: tuple[float, ...]
    peak_in_flight: tuple[int, ...]

    @property
    def bubble(self) -> float:
        """Idle share over all stages."""
        return 1.0 - sum(self.busy) / (len(self.busy) * self.makespan) if self.makespan else 0.0


def simulate(schedule: Schedule, shape: PipelineShape, costs: PassCosts) -> Simulated:
    """Run the orders of all stages against each other. Local, pure.

    A pass begins when its stage is free and what it needs has come; a stage that waits does nothing else (a blocking
    receive), and one that sends goes on at once (a buffered send).

    Raises:
        ScheduleError: no stage can go on, or a pass comes before what it needs on its own stage, twice, or before that of an
            earlier micro-batch.
    """
    return simulate_orders([list(schedule.order(stage, shape)) for stage in range(shape.stages)], shape, costs)


def simulate_orders(orders: Sequence[Sequence[Action]], shape: PipelineShape, costs: PassCosts) -> Simulated:
    """Run given orders of passes, one a stage, see `simulate`. Local, pure."""
    stages = range(shape.stages)
    places = shape.virtual_stages * shape.micro_batches
    ends = _Ends([-1.0] * places, [-1.0] * places, [False] * places)
    position, clock, busy = [0] * shape.stages, [0.0] * shape.stages, [0.0] * shape.stages
    held, peak = [0] * shape.stages, [0] * shape.stages
    left = sum(len(order) for order in orders)
    while left:
        before = left
        for s in stages:
            left -= _advance(orders[s], position, clock, busy, held, peak, s, ends, shape, costs)
        if left == before:
            waiting = {s: orders[s][position[s]] for s in stages if position[s] < len(orders[s])}
            raise ScheduleError(f"no stage can go on; they wait for {waiting}")
    return Simulated(max(clock), tuple(busy), tuple(peak))


@dataclass
class _Ends:
    """When the passes of every (virtual stage, micro-batch) ended; -1: not yet."""

    forward: list[float]
    backward: list[float]
    weights: list[bool]


def _advance(
    order: Sequence[Action],
    position: list[int],
    clock: list[float],
    busy: list[float],
    held: list[int],
    peak: list[int],
    s: int,
    ends: _Ends,
    shape: PipelineShape,
    costs: PassCosts,
) -> int:
    """Do all that stage s can do now; return how many passes that were. Plain loops and locals: it runs millions of times."""
    num, stages, last = shape.micro_batches, shape.stages, shape.virtual_stages - 1
    forward, backward, weights = ends.forward, ends.backward, ends.weights
    is_forward, is_input = Kind.FORWARD, Kind.BACKWARD_INPUT
    forward_s, input_s, weight_s, transfer = costs.forward, costs.backward_input, costs.backward_weight, costs.transfer
    begin = i = position[s]
    now, works, holds, most = clock[s], busy[s], held[s], peak[s]
    stop = len(order)
    while i < stop:
        kind, m, c = order[i]
        virtual = c * stages + s
        at = virtual * num + m
        if kind is is_forward:
            came = forward[at - num] + transfer if virtual else 0.0
            if virtual and forward[at - num] < 0:
                break
            right = forward[at] < 0 and (m == 0 or forward[at - 1] >= 0)
            forward[at] = now = (came if came > now else now) + forward_s
            works += forward_s
            holds += 1
            if holds > most:
                most = holds
        elif kind is is_input:
            came = backward[at + num] + transfer if virtual < last else 0.0
            if virtual < last and backward[at + num] < 0:
                break
            right = forward[at] >= 0 > backward[at] and (m == 0 or backward[at - 1] >= 0)
            backward[at] = now = (came if came > now else now) + input_s
            works += input_s
        else:
            right = kind is Kind.BACKWARD_WEIGHT and backward[at] >= 0 and not weights[at] and (m == 0 or weights[at - 1])
            now += weight_s
            works += weight_s
            weights[at] = True
            holds -= 1
        if not right:
            raise ScheduleError(f"stage {s} does {order[i]} too early or twice")
        i += 1
    position[s], clock[s], busy[s], held[s], peak[s] = i, now, works, holds, most
    return i - begin
