"""Pipeline schedules: what a stage does, in which order, as plain data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto


class Kind(Enum):
    """What an action does with a micro-batch."""

    RECEIVE_ACTIVATION = auto()
    FORWARD = auto()
    SEND_ACTIVATION = auto()
    RECEIVE_GRADIENT = auto()
    BACKWARD_INPUT = auto()
    SEND_GRADIENT = auto()
    BACKWARD_WEIGHT = auto()
    # Both halves of the backward pass layer by layer, for a stage with nobody to send to.
    BACKWARD = auto()


@dataclass(frozen=True)
class Action:
    """One thing that a stage does with one micro-batch."""

    kind: Kind
    micro_batch: int


def one_forward_one_backward(stage: int, num_stages: int, num_micro_batches: int) -> Iterator[Action]:
    """Yield the 1F1B schedule of a stage. Local.

    After a warm-up of num_stages - 1 - stage forward passes, forward and backward alternate, so that at
    most num_stages - stage micro-batches are in flight. Source: Narayanan et al. 2021, "Efficient
    large-scale language model training on GPU clusters", section 2.2 (PipeDream-Flush).
    """
    warm_up = min(num_stages - 1 - stage, num_micro_batches)
    for m in range(warm_up):
        yield from _forward(stage, num_stages, m)
    for m in range(num_micro_batches - warm_up):
        yield from _forward(stage, num_stages, warm_up + m)
        yield from _backward(stage, num_stages, m)
    for m in range(num_micro_batches - warm_up, num_micro_batches):
        yield from _backward(stage, num_stages, m)


def forward_only(stage: int, num_stages: int, num_micro_batches: int) -> Iterator[Action]:
    """Yield the schedule of an evaluation: every micro-batch forward, in order. Local."""
    for m in range(num_micro_batches):
        yield from _forward(stage, num_stages, m)


def _forward(stage: int, num_stages: int, m: int) -> Iterator[Action]:
    if stage > 0:
        yield Action(Kind.RECEIVE_ACTIVATION, m)
    yield Action(Kind.FORWARD, m)
    if stage < num_stages - 1:
        yield Action(Kind.SEND_ACTIVATION, m)


def _backward(stage: int, num_stages: int, m: int) -> Iterator[Action]:
    if stage < num_stages - 1:
        yield Action(Kind.RECEIVE_GRADIENT, m)
    if stage == 0:
        yield Action(Kind.BACKWARD, m)
        return
    yield Action(Kind.BACKWARD_INPUT, m)
    yield Action(Kind.SEND_GRADIENT, m)
    yield Action(Kind.BACKWARD_WEIGHT, m)
