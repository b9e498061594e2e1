"""Which layers a stage gets, and how wide its ends are."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest

from lepton_mpi.config.schema import ModelConfig
from lepton_mpi.errors import ConfigError
from lepton_mpi.models.family import DataShape, ModelSpec
from lepton_mpi.models.mlp import Mlp
from lepton_mpi.models.task import TASKS
from lepton_mpi.nn.chain import Chain
from lepton_mpi.nn.layer import Shapes
from lepton_mpi.nn.linear import Linear
from lepton_mpi.parallel.placement import StagePlan, balance_stages, divide_model, plan_stage, stage_shapes
from lepton_mpi.train.network import declare_model


def mlp(in_features: int, hidden_sizes: tuple[int, ...], num_classes: int) -> ModelSpec:
    config = ModelConfig(hidden_sizes=hidden_sizes)
    return Mlp().declare(config, TASKS["classification"], DataShape((in_features,), num_classes))


def ends(plan: StagePlan) -> tuple[Shapes, Shapes]:
    """Return what enters and leaves a stage of one run of layers."""
    (virtual,) = plan.virtual_stages
    return virtual.in_shapes, virtual.out_shapes


def best_by_force(costs: list[int], stages: int) -> int:
    cuts = combinations(range(1, len(costs)), stages - 1)
    return min(max(sum(costs[a:b]) for a, b in pairwise([0, *cut, len(costs)])) for cut in cuts)


@pytest.mark.parametrize("num_layers", range(1, 8))
def test_no_division_is_better(num_layers: int) -> None:
    random = np.random.default_rng(num_layers)
    for stages in range(1, num_layers + 1):
        for _ in range(30):
            costs = random.integers(1, 50, num_layers).tolist()
            runs = balance_stages(costs, stages)
            assert [run[0] for run in runs] == [0, *[run[1] for run in runs[:-1]]]
            assert runs[-1][1] == num_layers
            assert all(first < last for first, last in runs)
            assert len(runs) == stages
            assert max(sum(costs[first:last]) for first, last in runs) == best_by_force(costs, stages)


def test_among_equals_earlier_stages_get_fewer_layers() -> None:
    assert balance_stages([1, 1, 1], 2) == ((0, 1), (1, 3))
    assert balance_stages([4, 1, 1, 1, 1], 2) == ((0, 1), (1, 5))


@pytest.mark.parametrize("shards", [1, 2, 3, 4])
@pytest.mark.parametrize("num_hidden", range(5))
def test_widths_fit_from_stage_to_stage(num_hidden: int, shards: int) -> None:
    model = mlp(13, (11, 9, 7, 10)[:num_hidden], 5)
    for stages in range(1, model.max_stages + 1):
        for shard in range(shards):
            plans = [plan_stage(model, stages, shards, stage, shard) for stage in range(stages)]
            assert [layer for plan in plans for layer in plan.layers] == list(model.layers)
            assert (ends(plans[0])[0], ends(plans[-1])[1]) == (((13,),), ((5,),))
            for before, after in pairwise(plans):
                assert ends(before)[1] == ends(after)[0]
            for plan in plans:
                layout, specs = plan.layout, [s for layer in plan.layers for s in layer.parameters]
                (first,) = (block for block in layout.blocks if block.name == specs[0].name)
                assert ends(plan)[0] == ((first.shape[1],),)  # the columns of the first weight
                # What all shards hold comes first, and what only this one holds begins with a block of its own.
                whole = [s.name for s in specs if shards > 1 and s.split_dim is None]
                divided = [s.name for s in specs if s.name not in whole]
                assert [block.name for block in layout.blocks] == whole + divided
                assert layout.private_start % 1024 == 0 or not divided
                assert dict(zip(whole + divided, layout.offsets, strict=True))[divided[0]] == layout.private_start
                starts = [o for b, o in zip(layout.blocks, layout.offsets, strict=True) if b.name.endswith("weight")]
                assert plan.layer_starts == tuple(starts)


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_primary_blocks_of_all_places_make_the_model_once(shards: int) -> None:
    model = mlp(13, (11, 9, 7), 5)
    for stages in range(1, 5):
        plans = [plan_stage(model, stages, shards, stage, shard) for stage in range(stages) for shard in range(shards)]
        sizes: dict[str, int] = {}
        for block in (block for plan in plans for block in plan.layout.blocks if block.is_primary):
            sizes[block.name] = sizes.get(block.name, 0) + block.size
        assert sizes == {spec.name: int(np.prod(spec.shape)) for spec in model.parameters}


def shared_model() -> ModelSpec:
    """Four layers, the last of which shares the weight of the first."""
    layers = (
        Linear("a", 6, 6),
        Chain("b", (Linear("b.0", 6, 6), Linear("b.1", 6, 6, bias=False))),
        Linear("c", 6, 6),
        Linear("d", 6, 6, tied="a.weight"),
    )
    return ModelSpec("test", TASKS["regression"], DataShape((6,), 0, (6,)), layers)


def test_a_shared_parameter_lies_first_and_is_answered_for_once() -> None:
    model = shared_model()
    assert [spec.name for spec in model.parameters].count("a.weight") == 1
    first, last = (plan_stage(model, 2, 1, stage, 0) for stage in range(2))
    assert [block.name for block in last.layout.blocks] == ["a.weight", "c.weight", "c.bias", "d.bias"]
    assert (first.shared, last.shared) == (((0, (0, 1)),), ((0, (0, 1)),))
    assert [plan.layout.blocks[0].is_primary for plan in (first, last)] == [True, False]
    # Nothing may be sent off before the sum over the stages: the first layer's start lies behind the shared block.
    assert first.layer_starts[0] == first.layout.offsets[1]
    assert last.layer_starts == (last.layout.offsets[1], last.layout.offsets[3])


def test_a_divided_output_is_cut_in_its_units() -> None:
    layers = (Linear("a", 6, 12, split="column", unit=4), Linear("b", 12, 6, split="row", unit=4))
    model = ModelSpec("test", TASKS["regression"], DataShape((6,), 0, (6,)), layers)
    shapes = [plan_stage(model, 2, 2, stage, shard) for shard in range(2) for stage in range(2)]
    assert [ends(shapes[0])[1], ends(shapes[2])[1]] == [ends(shapes[1])[0], ends(shapes[3])[0]]
    assert sorted(ends(plan)[0][0][0] for plan in shapes[1::2]) == [4, 8]
    (weight,) = (block for block in shapes[1].layout.blocks if block.name == "b.weight")
    assert ends(shapes[1])[0] == ((weight.shape[1],),)


def test_a_parameter_shared_within_a_stage_is_complete_with_its_first_layer() -> None:
    plan = plan_stage(shared_model(), 1, 1, 0, 0)
    assert plan.shared == ()
    offsets = dict(zip([block.name for block in plan.layout.blocks], plan.layout.offsets, strict=True))
    assert plan.layer_starts == (offsets["a.weight"], offsets["b.0.weight"], offsets["c.weight"], offsets["d.bias"])


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("shards", [1, 2])
def test_shapes_of_samples_with_more_columns(stages: int, shards: int) -> None:
    config = ModelConfig(family="recommender", task="ranking", hidden_sizes=(8, 6, 4), embedding_size=3)
    model = declare_model(config, DataShape((2,), 0, (), (9, 30)))
    for stage in range(stages):
        for shard in range(shards):
            plan = plan_stage(model, stages, shards, stage, shard)
            assert stage_shapes(model, stages, shards, stage, shard, (2,)) == (ends(plan),)
            ((entering, leaving),) = stage_shapes(model, stages, shards, stage, shard, (101,))
            pairs = {0: (101,)}.get(stage, (100, *ends(plan)[0][0][1:]))
            assert (entering, leaving) == ((pairs,), ((100, *ends(plan)[1][0][1:]),))
    with pytest.raises(ConfigError, match="expected samples of 2 columns"):
        stage_shapes(model, stages, shards, 0, 0, (1,))


def test_a_parameter_of_two_runs_of_one_stage_exists_once_there() -> None:
    model = shared_model()
    (alone,) = (plan_stage(model, 1, 1, 0, 0, division=divide_model(model, 1, 4)),)
    assert [len(virtual.layers) for virtual in alone.virtual_stages] == [1, 1, 1, 1]
    assert alone.shared == ()
    assert [block.name for block in alone.layout.blocks].count("a.weight") == 1
    # Layers 0 and 2 on one stage, 1 and 3 on the other: a.weight is on both, though the runs that hold it are far apart.
    first, last = (plan_stage(model, 2, 1, stage, 0, division=divide_model(model, 2, 2)) for stage in range(2))
    assert [layer.name for layer in first.layers] == ["a", "c"]
    assert (first.shared, last.shared) == (((0, (0, 1)),), ((0, (0, 1)),))
    assert [block.name for block in first.layout.blocks] == ["a.weight", "a.bias", "c.weight", "c.bias"]
    assert first.layer_starts == (first.layout.offsets[1], first.layout.offsets[2])
    assert [plan.layout.blocks[0].is_primary for plan in (first, last)] == [True, False]


def test_measured_costs_move_the_cuts() -> None:
    model = shared_model()
    assert divide_model(model, 2, costs=[0.1, 0.1, 0.1, 5.0]) == ((0, 3), (3, 4))
    assert divide_model(model, 2, costs=[5.0, 0.1, 0.1, 0.1]) == ((0, 1), (1, 4))


def test_shapes_of_other_samples_for_each_run_of_layers() -> None:
    config = ModelConfig(family="recommender", task="ranking", hidden_sizes=(8, 6, 4), embedding_size=3)
    model = declare_model(config, DataShape((2,), 0, (), (9, 30)))
    division = divide_model(model, 2, 2)
    for stage in range(2):
        plan = plan_stage(model, 2, 1, stage, 0, division=division)
        same = tuple((virtual.in_shapes, virtual.out_shapes) for virtual in plan.virtual_stages)
        assert stage_shapes(model, 2, 1, stage, 0, (2,), division=division) == same
        wider = stage_shapes(model, 2, 1, stage, 0, (101,), division=division)
        assert [leaving[0][0] for _, leaving in wider] == [100, 100]
