"""Which layers a stage gets, and how wide its ends are."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest

from lepton_mpi.models.mlp import mlp
from lepton_mpi.parallel.placement import balance_stages, plan_stage


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
            assert (plans[0].in_width, plans[-1].out_width) == (13, 5)
            for before, after in pairwise(plans):
                assert before.out_width == after.in_width
            for plan in plans:
                assert plan.in_width == plan.blocks[0].shape[1]  # the columns of the first weight
                assert [block.name for block in plan.blocks] == [s.name for x in plan.layers for s in (x.weight, x.bias)]


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_primary_blocks_of_all_places_make_the_model_once(shards: int) -> None:
    model = mlp(13, (11, 9, 7), 5)
    for stages in range(1, 5):
        plans = [plan_stage(model, stages, shards, stage, shard) for stage in range(stages) for shard in range(shards)]
        sizes: dict[str, int] = {}
        for block in (block for plan in plans for block in plan.blocks if block.is_primary):
            sizes[block.name] = sizes.get(block.name, 0) + block.size
        assert sizes == {spec.name: int(np.prod(spec.shape)) for spec in model.parameters}
