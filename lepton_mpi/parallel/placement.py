"""Which layers a stage holds and which blocks of parameters a rank holds. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from lepton_mpi.models.family import LinearSpec, ModelSpec
from lepton_mpi.nn.parameter import ParameterBlock, cut_parameter
from lepton_mpi.runtime.ranges import split_range


def balance_stages(costs: Sequence[int], stages: int) -> tuple[tuple[int, int], ...]:
    """Cut a list of layers into runs whose dearest one is as cheap as possible. Local.

    Args:
        costs: cost of each layer.
        stages: number of runs, at most the number of layers; none is empty.

    Returns:
        (first, last + 1) of each run. Among equals, earlier stages get fewer layers.
    """
    num = len(costs)
    prefix = [0]
    for cost in costs:
        prefix.append(prefix[-1] + cost)
    # best[s][i]: least maximal cost of the first i layers in s runs; cut[s][i]: where its last run begins.
    best = [[0.0] + [float("inf")] * num]
    cut = [[0] * (num + 1)]
    for s in range(1, stages + 1):
        row, at = [float("inf")] * (num + 1), [0] * (num + 1)
        for i in range(s, num + 1):
            for j in range(s - 1, i):
                dearest = max(best[s - 1][j], prefix[i] - prefix[j])
                if dearest < row[i]:
                    row[i], at[i] = dearest, j
        best.append(row)
        cut.append(at)
    bounds = [num]
    for s in range(stages, 0, -1):
        bounds.append(cut[s][bounds[-1]])
    bounds.reverse()
    return tuple(pairwise(bounds))


@dataclass(frozen=True)
class StagePlan:
    """What one (stage, shard) of the grid holds.

    Attributes:
        layers: its layers.
        blocks: its blocks of parameters, in the order of the layers (weight, bias, weight, ...).
        in_width, out_width: values a sample that enter and leave this rank's part.
    """

    layers: tuple[LinearSpec, ...]
    blocks: tuple[ParameterBlock, ...]
    in_width: int
    out_width: int


def plan_stage(model: ModelSpec, stages: int, shards: int, stage: int, shard: int) -> StagePlan:
    """Return what a place of the grid holds. Local; every rank can ask for every place."""
    first, last = balance_stages([layer.cost for layer in model.layers], stages)[stage]
    layers = model.layers[first:last]
    blocks = tuple(cut_parameter(spec, shards, shard) for layer in layers for spec in (layer.weight, layer.bias))
    entry, end = layers[0], layers[-1]
    in_width = entry.in_features if entry.split == "column" else _share(entry.in_features, shards, shard)
    whole = end.split == "row" or end.gather
    out_width = end.out_features if whole else _share(end.out_features, shards, shard)
    return StagePlan(layers, blocks, in_width, out_width)


def _share(length: int, parts: int, index: int) -> int:
    start, stop = split_range(length, parts, index)
    return stop - start
