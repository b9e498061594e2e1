"""Parameters: what they are globally, which block of them a rank holds, and where it lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.nn.initial import Constant, Initial
from lepton_mpi.runtime.random import random_key
from lepton_mpi.runtime.ranges import ShardCut

# Every parameter starts at a multiple of this many values: one cache line.
_ALIGNMENT = 16
# The longest block of a codec, in values.
_CODEC_BLOCK = 1024


@dataclass(frozen=True)
class ParameterSpec:
    """A parameter of the model, as every rank knows it.

    Attributes:
        name: global name, e.g. "layers.0.weight".
        shape: global shape.
        split_dim: the dim that shards divide, or None where every shard holds all of it.
        split_unit: shards divide it in whole units of this length, such as the rows of an attention head.
        initial: law of the initial values.
        decay: whether weight decay applies; norms and biases are exempt.
        role: a "weight" follows its gradient; to a "statistic", such as a running mean, what the layers put into
            its gradient is added as it is, once a step, with no learning rate and outside of any norm.
    """

    name: str
    shape: tuple[int, ...]
    split_dim: int | None = None
    split_unit: int = 1
    initial: Initial = field(default_factory=Constant)
    decay: bool = True
    role: Literal["weight", "statistic"] = "weight"

    @property
    def max_shards(self) -> int | None:
        """Most shards that still hold something of it each; None: any number."""
        return None if self.split_dim is None else self.shape[self.split_dim] // self.split_unit


@dataclass(frozen=True)
class ParameterBlock:
    """The part of a parameter that one shard holds.

    Attributes:
        spec: the parameter.
        starts: where the block begins in the global array.
        shape: its shape.
        is_primary: whether this shard answers for the values: replicated parameters count once in
            norms, hashes and checkpoints.
    """

    spec: ParameterSpec
    starts: tuple[int, ...]
    shape: tuple[int, ...]
    is_primary: bool

    @property
    def name(self) -> str:
        """Global name of the parameter."""
        return self.spec.name

    @property
    def size(self) -> int:
        """Number of values of the block."""
        return math.prod(self.shape)


def cut_parameter(spec: ParameterSpec, shards: int, shard: int, chunks: int = 0) -> ParameterBlock:
    """Return the block of a parameter that shard `shard` of `shards` holds, see `ShardCut` for the chunks. Local."""
    starts, shape = [0] * len(spec.shape), list(spec.shape)
    if spec.split_dim is not None:
        start, stop = ShardCut(shards, chunks).share(shard, spec.shape[spec.split_dim], spec.split_unit)
        starts[spec.split_dim], shape[spec.split_dim] = start, stop - start
    return ParameterBlock(spec, tuple(starts), tuple(shape), spec.split_dim is not None or shard == 0)


def initial_values(block: ParameterBlock, seed: int, rows: tuple[int, int] | None = None) -> NDArray[np.float32]:
    """Draw initial values that depend on (seed, name, global element) alone. Local.

    Args:
        block: which part of the parameter.
        seed: seed of the run.
        rows: only this range of the block's first dim.

    Returns:
        float32 array of the shape of the block, or of its rows.
    """
    first, last = rows or (0, block.shape[0])
    row_values = math.prod(block.spec.shape[1:])
    key = random_key(seed, "init", block.name)
    whole_rows = block.spec.initial.draw(key, (block.starts[0] + first) * row_values, (last - first) * row_values)
    values = whole_rows.reshape(last - first, *block.spec.shape[1:])
    columns = tuple(slice(s, s + n) for s, n in zip(block.starts[1:], block.shape[1:], strict=True))
    return np.ascontiguousarray(values[(slice(None), *columns)])


@dataclass(frozen=True)
class Parameter:
    """A block with its arrays: views into the flat buffers of values and gradients.

    Attributes:
        block: which part of which parameter.
        value: current values, shape of the block; written by the optimizer only.
        grad: gradient, shape of the block; layers add to it.
    """

    block: ParameterBlock
    value: Any
    grad: Any


class ParameterLayout:
    """Where the parameters of one model part lie in a flat buffer.

    Blocks follow each other as given, each at a multiple of 16 values, statistics after all weights. Weights of which others hold
    copies come first, and what follows them begins at a multiple of 1024 values, so that no block of a codec holds both.

    Attributes:
        blocks: the blocks in order.
        offsets: where each begins, in values.
        private_start: where the weights begin that this rank alone holds, over all stages and shards.
        statistics_start: where the statistics begin.
        num_values: length of the buffer, gaps included.
    """

    def __init__(self, weights: Sequence[ParameterBlock], statistics: Sequence[ParameterBlock] = (), num_copied: int = 0) -> None:
        """Lay blocks out; of the first `num_copied` weights others hold copies."""
        self.blocks = (*weights, *statistics)
        offsets, end = [], 0
        self.private_start = 0
        for number, block in enumerate(self.blocks):
            if number == num_copied > 0:
                self.private_start = end = -(-end // _CODEC_BLOCK) * _CODEC_BLOCK
            offsets.append(end)
            end += -(-block.size // _ALIGNMENT) * _ALIGNMENT
        self.offsets = tuple(offsets)
        self.statistics_start = offsets[len(weights)] if statistics else end
        self.num_values = end
        if num_copied and num_copied == len(self.blocks):
            self.private_start = end

    def gaps(self, end: int) -> list[slice]:
        """Return the ranges up to an end that belong to no block. Local."""
        gaps, last = [], 0
        for start, block in zip(self.offsets, self.blocks, strict=True):
            if start < end:
                gaps.append(slice(last, start))
                last = start + block.size
        gaps.append(slice(last, end))
        return [gap for gap in gaps if gap.start < gap.stop]

    def view(self, index: int, buffer: Any) -> Any:
        """Return block `index` of a flat buffer as an array of its shape. Local."""
        block, start = self.blocks[index], self.offsets[index]
        return buffer[start : start + block.size].reshape(block.shape)

    def parameters(self, values: Any, grads: Any) -> tuple[Parameter, ...]:
        """Return the parameters as views into flat buffers of `num_values` values. Local."""
        return tuple(Parameter(block, self.view(i, values), self.view(i, grads)) for i, block in enumerate(self.blocks))
