"""Which layers a stage holds and which blocks of parameters a rank holds. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from lepton_mpi.models.family import ModelSpec
from lepton_mpi.nn.layer import Layer, Shapes
from lepton_mpi.nn.parameter import ParameterBlock, ParameterLayout, ParameterSpec, cut_parameter
from lepton_mpi.runtime.ranges import ShardCut


def balance_stages(costs: Sequence[float], stages: int) -> tuple[tuple[int, int], ...]:
    """Cut a list of layers into runs whose dearest one is as cheap as possible. Local.

    Args:
        costs: cost of each layer.
        stages: number of runs, at most the number of layers; none is empty.

    Returns:
        (first, last + 1) of each run. Among equals, earlier stages get fewer layers.
    """
    num = len(costs)
    prefix = [0.0]
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


# A model cut into virtual stages: (first, last + 1) layer of each. Number v is on stage v % stages.
Division = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class VirtualStage:
    """A run of layers that a stage holds.

    Attributes:
        layers: its layers.
        in_shapes, out_shapes: shapes of a sample's arrays that enter and leave this rank's part of it.
    """

    layers: tuple[Layer, ...]
    in_shapes: Shapes
    out_shapes: Shapes


@dataclass(frozen=True)
class StagePlan:
    """What one (stage, shard) of the grid holds.

    Attributes:
        virtual_stages: its runs of layers, in the order of the model; one, but with the interleaved schedule.
        layout: its blocks of parameters and where they lie: first those that other stages or all shards hold too, whose gradients
            are complete last; then the others, layer after layer; then running statistics.
        layer_starts: where in the flat buffer the blocks begin that are complete once the layers from each one on are done.
        shared: indices of the blocks that other stages hold too, and which stages those are, this one included.
    """

    virtual_stages: tuple[VirtualStage, ...]
    layout: ParameterLayout
    layer_starts: tuple[int, ...]
    shared: tuple[tuple[int, tuple[int, ...]], ...]

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers of all its runs, in order."""
        return tuple(layer for virtual in self.virtual_stages for layer in virtual.layers)


def divide_model(model: ModelSpec, stages: int, virtual_stages: int = 1, costs: Sequence[float] | None = None) -> Division:
    """Cut a model into virtual stages as equal in cost as can be. Local, pure.

    Args:
        model: the model.
        stages: pipeline stages.
        virtual_stages: runs of layers that each stage holds.
        costs: cost of each layer; None: as the layers estimate it.
    """
    return balance_stages(model.costs if costs is None else costs, stages * virtual_stages)


def plan_stage(
    model: ModelSpec,
    stages: int,
    shards: int,
    stage: int,
    shard: int,
    chunks: int = 0,
    division: Division | None = None,
    sequence: bool = False,
) -> StagePlan:
    """Return what a place of the grid holds. Local; every rank can ask for every place.

    Args:
        model: the model.
        stages, shards: sizes of the grid.
        stage, shard: the place.
        chunks: see `ShardCut`.
        division: see `divide_model`; None: one run of layers a stage, by estimated costs.
        sequence: see `Place`.
    """
    cut = ShardCut(shards, chunks)
    division = division or divide_model(model, stages)
    runs = division[stage::stages]
    layers = tuple(layer for first, last in runs for layer in model.layers[first:last])
    holders = _holders(model, division, stages)
    own = {spec.name: spec for layer in layers for spec in layer.parameters}
    shared = [spec for spec in own.values() if len(holders[spec.name]) > 1]
    alone = [spec for spec in own.values() if len(holders[spec.name]) == 1 and spec.role == "weight"]
    replicated = [spec for spec in alone if shards > 1 and spec.split_dim is None]
    private = [spec for spec in alone if spec not in replicated]
    statistics = [spec for spec in own.values() if len(holders[spec.name]) == 1 and spec.role == "statistic"]
    weights = [_cut(spec, cut, shard, stage == holders[spec.name][0]) for spec in [*shared, *replicated, *private]]
    layout = ParameterLayout(
        weights, [cut_parameter(spec, shards, shard, chunks) for spec in statistics], len(shared) + len(replicated)
    )
    return StagePlan(
        tuple(VirtualStage(model.layers[first:last], *_ends(model, (first, last), cut, shard, sequence)) for first, last in runs),
        layout,
        _layer_starts(layers, layout, {spec.name for spec in private}),
        tuple((index, holders[spec.name]) for index, spec in enumerate(shared)),
    )


def stage_shapes(
    model: ModelSpec,
    stages: int,
    shards: int,
    stage: int,
    shard: int,
    input_shape: tuple[int, ...],
    chunks: int = 0,
    division: Division | None = None,
    sequence: bool = False,
) -> tuple[tuple[Shapes, Shapes], ...]:
    """Return what enters and leaves the runs of a place of the grid, as `VirtualStage` has it, for samples of another shape. Local.

    Raises:
        ConfigError: the model cannot take such samples.
    """
    asked, cut = model.for_samples(input_shape), ShardCut(shards, chunks)
    division = division or divide_model(model, stages)
    return tuple(_ends(asked, run, cut, shard, sequence) for run in division[stage::stages])


def _ends(model: ModelSpec, run: tuple[int, int], cut: ShardCut, shard: int, sequence: bool) -> tuple[Shapes, Shapes]:
    first, last = run
    entering, leaving = model.boundaries[first], model.boundaries[last]
    return (
        entering if first == 0 else _local(entering, model.layers[first - 1], cut, shard, sequence),
        _local(leaving, model.layers[last - 1], cut, shard, sequence),
    )


def _holders(model: ModelSpec, division: Division, stages: int) -> dict[str, tuple[int, ...]]:
    """Return which stages hold each parameter, in order; the first of them answers for it."""
    found: dict[str, set[int]] = {}
    for number, (first, last) in enumerate(division):
        for name in {spec.name for layer in model.layers[first:last] for spec in layer.parameters}:
            found.setdefault(name, set()).add(number % stages)
    return {name: tuple(sorted(holders)) for name, holders in found.items()}


def _cut(spec: ParameterSpec, cut: ShardCut, shard: int, answers: bool) -> ParameterBlock:
    block = cut_parameter(spec, cut.shards, shard, cut.chunks)
    return block if answers else replace(block, is_primary=False)


def _layer_starts(layers: Sequence[Layer], layout: ParameterLayout, private: set[str]) -> tuple[int, ...]:
    """Return for each layer the least offset of the private weights that it or a later layer declares first."""
    offsets = {block.name: start for block, start in zip(layout.blocks, layout.offsets, strict=True)}
    starts, seen = [], set[str]()
    end = layout.statistics_start
    for layer in layers:
        own = [offsets[spec.name] for spec in layer.parameters if spec.name in private and spec.name not in seen]
        seen.update(spec.name for spec in layer.parameters)
        starts.append(min(own, default=-1))
    for i in reversed(range(len(starts))):
        end = starts[i] = end if starts[i] < 0 else starts[i]
    return tuple(starts)


def _local(shapes: Shapes, before: Layer, cut: ShardCut, shard: int, sequence: bool) -> Shapes:
    """Return the shapes on one shard of what a layer hands on."""
    if not before.divided:
        if not sequence:
            return shapes
        start, stop = cut.share(shard, shapes[0][0])
        return ((stop - start, *shapes[0][1:]),)
    start, stop = cut.share(shard, shapes[0][-1], before.divided_unit)
    return ((*shapes[0][:-1], stop - start),)
