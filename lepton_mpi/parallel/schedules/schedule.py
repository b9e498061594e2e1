"""What a pipeline schedule is: an order of passes for every stage, its peak memory and its bubble.

Dims: S stages, C chunks a stage, M micro-batches. Chunk c of stage s is the virtual stage c * S + s of the model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple


class Kind(Enum):
    """What an action does with a micro-batch."""

    RECEIVE_ACTIVATION = auto()
    FORWARD = auto()
    SEND_ACTIVATION = auto()
    RECEIVE_GRADIENT = auto()
    BACKWARD_INPUT = auto()
    SEND_GRADIENT = auto()
    BACKWARD_WEIGHT = auto()
    # Both halves of the backward pass layer by layer, where nobody waits for the gradient of the input.
    BACKWARD = auto()


class Action(NamedTuple):
    """One thing that a stage does with one micro-batch in one of its chunks."""

    kind: Kind
    micro_batch: int
    chunk: int = 0


@dataclass(frozen=True)
class PipelineShape:
    """Sizes of a pipeline.

    Attributes:
        stages: ranks in a row.
        micro_batches: pieces of a batch.
        chunks: runs of layers that each stage holds.
    """

    stages: int
    micro_batches: int
    chunks: int = 1

    @property
    def virtual_stages(self) -> int:
        """Runs of layers of the whole model."""
        return self.stages * self.chunks


@dataclass(frozen=True)
class PassCosts:
    """Times of the passes of one chunk for one micro-batch, and of a message between two stages, in any one unit."""

    forward: float = 1.0
    backward_input: float = 1.0
    backward_weight: float = 1.0
    transfer: float = 0.0

    @property
    def work(self) -> float:
        """Time of all passes of one chunk for one micro-batch."""
        return self.forward + self.backward_input + self.backward_weight


class Schedule(ABC):
    """An order of passes for every stage. Stateless."""

    @abstractmethod
    def order(self, stage: int, shape: PipelineShape) -> Iterator[Action]:
        """Yield the passes of a stage, without messages. Local.

        For each chunk and kind the micro-batches come in order: gradients then add up in one order whatever the schedule, so
        that all schedules give the same bits.
        """

    @abstractmethod
    def peak_in_flight(self, stage: int, shape: PipelineShape) -> int:
        """Return the most (micro-batch, chunk) pairs that a stage holds at once. Local.

        A pair is held from its forward pass to the end of its last backward half.
        """

    @abstractmethod
    def idle(self, shape: PipelineShape, costs: PassCosts) -> float:
        """Return how long each stage is idle in a step, of stages of equal costs and messages that take no time. Local."""

    def bubble(self, shape: PipelineShape, costs: PassCosts) -> float:
        """Return the idle share of a step. Local."""
        idle = self.idle(shape, costs)
        return idle / (idle + shape.micro_batches * shape.chunks * costs.work)

    def actions(self, stage: int, shape: PipelineShape) -> Iterator[Action]:
        """Yield all that a stage does, messages included. Local."""
        return with_messages(self.order(stage, shape), stage, shape)


def with_messages(order: Iterable[Action], stage: int, shape: PipelineShape) -> Iterator[Action]:
    """Yield the passes of a stage with the messages between: each right before it is needed, or right after it is made. Local."""
    passes = list(order)
    last = shape.virtual_stages - 1
    fused = False
    for i, (kind, m, c) in enumerate(passes):
        virtual = c * shape.stages + stage
        if fused:
            fused = False
        elif kind is Kind.FORWARD:
            if virtual > 0:
                yield Action(Kind.RECEIVE_ACTIVATION, m, c)
            yield passes[i]
            if virtual < last:
                yield Action(Kind.SEND_ACTIVATION, m, c)
        elif kind is Kind.BACKWARD_INPUT:
            if virtual < last:
                yield Action(Kind.RECEIVE_GRADIENT, m, c)
            fused = virtual == 0 and passes[i + 1 : i + 2] == [Action(Kind.BACKWARD_WEIGHT, m, c)]
            yield Action(Kind.BACKWARD, m, c) if fused else passes[i]
            if virtual > 0:
                yield Action(Kind.SEND_GRADIENT, m, c)
        else:
            yield passes[i]


def backward(micro_batch: int, chunk: int = 0) -> Iterator[Action]:
    """Yield both halves of a backward pass, the one first that the stage before waits for. Local."""
    yield Action(Kind.BACKWARD_INPUT, micro_batch, chunk)
    yield Action(Kind.BACKWARD_WEIGHT, micro_batch, chunk)
