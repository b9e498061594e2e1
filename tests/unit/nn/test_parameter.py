"""Parameters: blocks, initial values, and where they lie."""

from __future__ import annotations

import numpy as np
import pytest

from lepton_mpi.nn.initial import Constant, Normal, Uniform
from lepton_mpi.nn.parameter import ParameterLayout, ParameterSpec, cut_parameter, initial_values
from lepton_mpi.runtime.ranges import split_range

COLUMN = ParameterSpec("layers.0.weight", (11, 7), 0, initial=Uniform(0.5))
ROW = ParameterSpec("layers.1.weight", (5, 11), 1, initial=Uniform(0.25))
BIAS = ParameterSpec("layers.1.bias", (5,), None, decay=False)


@pytest.mark.parametrize("spec", [COLUMN, ROW, BIAS], ids=lambda spec: spec.name)
@pytest.mark.parametrize("shards", [1, 2, 3, 4, 11])
def test_blocks_of_all_shards_make_the_parameter_once(spec: ParameterSpec, shards: int) -> None:
    held, answered = np.zeros(spec.shape, np.int64), np.zeros(spec.shape, np.int64)
    for shard in range(shards):
        block = cut_parameter(spec, shards, shard)
        here = tuple(slice(start, start + n) for start, n in zip(block.starts, block.shape, strict=True))
        held[here] += 1
        answered[here] += block.is_primary
        assert (block.name, block.size) == (spec.name, int(np.prod(block.shape)))
    assert (answered == 1).all()
    assert (held == (1 if spec.split_dim is not None else shards)).all()


@pytest.mark.parametrize("spec", [COLUMN, ROW], ids=lambda spec: spec.name)
@pytest.mark.parametrize("shards", [2, 3, 5])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_initial_values_depend_on_the_element_alone(spec: ParameterSpec, shards: int, parts: int) -> None:
    whole = initial_values(cut_parameter(spec, 1, 0), seed=3)
    for shard in range(shards):
        block = cut_parameter(spec, shards, shard)
        rows = [initial_values(block, 3, split_range(block.shape[0], parts, part)) for part in range(parts)]
        here = tuple(slice(start, start + n) for start, n in zip(block.starts, block.shape, strict=True))
        found = np.concatenate(rows)
        assert found.tobytes() == whole[here].tobytes()
        assert found.flags.c_contiguous


def test_initial_values_are_uniform_within_the_bound() -> None:
    values = initial_values(cut_parameter(ParameterSpec("w", (300, 200), 0, initial=Uniform(0.5)), 1, 0), seed=1)
    assert values.dtype == np.float32
    assert -0.5 <= values.min() < -0.499
    assert 0.499 < values.max() <= 0.5
    assert abs(values.mean()) < 0.5 / np.sqrt(3 * values.size) * 4  # four standard errors
    assert values.std() == pytest.approx(0.5 / np.sqrt(3), rel=0.01)


def test_initial_values_change_with_seed_and_name() -> None:
    block, other = (
        cut_parameter(COLUMN, 1, 0),
        cut_parameter(ParameterSpec("layers.2.weight", (11, 7), 0, initial=Uniform(0.5)), 1, 0),
    )
    first = initial_values(block, 1)
    assert not np.array_equal(first, initial_values(block, 2))
    assert not np.array_equal(first, initial_values(other, 1))
    assert np.array_equal(first, initial_values(block, 1))


def test_biases_start_at_zero() -> None:
    assert not initial_values(cut_parameter(BIAS, 2, 1), 1).any()


def test_layout_puts_blocks_on_cache_lines_in_order() -> None:
    blocks = [cut_parameter(spec, 2, 0) for spec in (COLUMN, ROW, BIAS)]  # 42, 30 and 5 values
    layout = ParameterLayout(blocks)
    assert layout.offsets == (0, 48, 80)
    assert layout.num_values == 96
    values, grads = np.arange(96, dtype=np.float32), np.zeros(96, np.float32)
    parameters = layout.parameters(values, grads)
    assert [p.block for p in parameters] == blocks
    assert parameters[1].value.shape == (5, 6)
    assert parameters[1].value[0, 0] == 48
    parameters[2].grad[:] = 1
    assert grads.nonzero()[0].tolist() == [80, 81, 82, 83, 84]  # views, and the gaps stay untouched


def test_gaps_are_what_no_block_holds() -> None:
    weights = [cut_parameter(ParameterSpec(name, (size,)), 1, 0) for name, size in (("a", 16), ("b", 5), ("c", 40), ("d", 3))]
    layout = ParameterLayout(weights[:3], weights[3:], num_copied=1)
    gaps = layout.gaps(layout.statistics_start)
    assert gaps == [slice(16, 1024), slice(1029, 1040), slice(1080, 1088)]
    held = np.zeros(layout.statistics_start, bool)
    for offset, block in zip(layout.offsets[:3], layout.blocks[:3], strict=True):
        held[offset : offset + block.size] = True
    for gap in gaps:
        assert not held[gap].any()
        held[gap] = True
    assert held.all()
    assert ParameterLayout([]).gaps(0) == []


def test_layout_of_nothing() -> None:
    assert ParameterLayout([]).num_values == 0


def test_statistics_lie_apart() -> None:
    weights = [cut_parameter(spec, 1, 0) for spec in (COLUMN, BIAS)]
    statistics = [cut_parameter(ParameterSpec(name, (5,), role="statistic"), 1, 0) for name in ("mean", "var")]
    layout = ParameterLayout(weights, statistics)
    assert layout.offsets == (0, 80, 96, 112)
    assert (layout.statistics_start, layout.num_values) == (96, 128)
    assert ParameterLayout(weights).statistics_start == ParameterLayout(weights).num_values == 96


def test_shards_divide_whole_units() -> None:
    heads = ParameterSpec("q.weight", (12, 5), 0, split_unit=4)
    assert heads.max_shards == 3
    assert [(cut_parameter(heads, 2, shard).starts, cut_parameter(heads, 2, shard).shape) for shard in (0, 1)] in (
        [((0, 0), (4, 5)), ((4, 0), (8, 5))],
        [((0, 0), (8, 5)), ((8, 0), (4, 5))],
    )


def test_laws_of_initial_values() -> None:
    normal = Normal(0.02).draw(5, 0, 100_000)
    assert normal.dtype == np.float32
    assert normal.mean() == pytest.approx(0, abs=0.02 / np.sqrt(normal.size) * 4)
    assert normal.std() == pytest.approx(0.02, rel=0.01)
    assert np.mean(np.abs(normal) < 0.02) == pytest.approx(0.6827, abs=0.006)
    assert Normal(0.02).draw(5, 1001, 7).tobytes() == normal[1001:1008].tobytes()
    assert (Constant(1.5).draw(5, 3, 4) == np.float32(1.5)).all()
