"""Interleaved 1F1B: each stage holds several chunks of layers, which makes the bubble smaller by as much.

Narayanan et al. 2021, "Efficient large-scale language model training on GPU clusters", section 2.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import final

from lepton_mpi.parallel.schedules.schedule import Action, Kind, PassCosts, PipelineShape, Schedule, backward
from lepton_mpi.runtime.ranges import split_range


@final
class Interleaved(Schedule):
    """1F1B over chunks: micro-batches pass in groups, each group through one chunk of all stages, then through the next."""

    def order(self, stage: int, shape: PipelineShape) -> Iterator[Action]:
        """Yield the warm-up, the alternation, and the backward passes that are left."""
        forward, backwards = _passes(shape)
        warm_up = _warm_up(stage, shape)
        yield from forward[:warm_up]
        for k, halves in enumerate(backwards):
            yield from forward[warm_up + k : warm_up + k + 1]
            yield from halves

    def peak_in_flight(self, stage: int, shape: PipelineShape) -> int:
        """Return min(M C, 2 (S - 1 - stage) + (C - 1) G + 1), where G is the largest group; with C = 1 min(S - stage, M).

        Each is a chunk of a micro-batch, a C-th of what 1F1B holds of one.
        """
        return min(_warm_up(stage, shape) + 1, shape.micro_batches * shape.chunks)

    def idle(self, shape: PipelineShape, costs: PassCosts) -> float:
        """Return (S - 1) (forward + backward_input), of a chunk: a C-th of what 1F1B idles.

        With M < S a group is through a stage before its first micro-batch has come around: each further chunk then waits
        (S - M) forward and, where positive, S backward_input - M backward.
        """
        stages, num = shape.stages, shape.micro_batches
        around = max(stages - num, 0) * costs.forward
        back = max(stages * costs.backward_input - num * (costs.backward_input + costs.backward_weight), 0)
        return (stages - 1) * (costs.forward + costs.backward_input) + (shape.chunks - 1) * (around + back)


@lru_cache(maxsize=16)
def _passes(shape: PipelineShape) -> tuple[tuple[Action, ...], tuple[tuple[Action, ...], ...]]:
    """Return all forward passes, and all backward ones with their halves, as every stage does them."""
    forward = tuple(Action(Kind.FORWARD, m, c) for m, c in chunk_order(shape))
    return forward, tuple(tuple(backward(m, c)) for m, c in chunk_order(shape, backwards=True))


def chunk_order(shape: PipelineShape, backwards: bool = False) -> list[tuple[int, int]]:
    """Return in which order (micro-batch, chunk) pairs pass through every stage, forward or backward. Local.

    Groups hold at least S micro-batches where there are as many, so that the first of a group has come around before the
    last has left; M // S groups of sizes as equal as possible, larger ones first, so that any M will do.
    """
    num = shape.micro_batches
    groups = _num_groups(shape)
    pairs = []
    for group in range(groups):
        first, stop = split_range(num, groups, group)
        for c in reversed(range(shape.chunks)) if backwards else range(shape.chunks):
            pairs += [(m, c) for m in range(first, stop)]
    return pairs


def _num_groups(shape: PipelineShape) -> int:
    return max(shape.micro_batches // shape.stages, 1)


def _warm_up(stage: int, shape: PipelineShape) -> int:
    """Return how many chunks pass forward before the first backward pass."""
    later = shape.stages - 1 - stage
    largest_group = -(-shape.micro_batches // _num_groups(shape))
    warm_up = later if shape.chunks == 1 else 2 * later + (shape.chunks - 1) * largest_group
    return min(warm_up, shape.micro_batches * shape.chunks)
