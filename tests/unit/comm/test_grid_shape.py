"""The choice of grid sizes."""

from __future__ import annotations

import pytest

from lepton_mpi.comm.grid import GridShape, choose_grid_shape
from lepton_mpi.errors import GridError


@pytest.mark.parametrize(
    ("num_ranks", "expected"),
    [
        (1, (1, 1, 1)),
        (2, (2, 1, 1)),
        (3, (3, 1, 1)),
        (4, (2, 2, 1)),
        (5, (5, 1, 1)),
        (6, (3, 2, 1)),
        (7, (7, 1, 1)),
        (8, (4, 2, 1)),
        (9, (3, 3, 1)),
        (12, (4, 3, 1)),
        (16, (4, 2, 2)),
        (17, (17, 1, 1)),
        (36, (6, 3, 2)),
        (64, (8, 4, 2)),
        (97, (97, 1, 1)),
    ],
)
def test_free_choice(num_ranks: int, expected: tuple[int, int, int]) -> None:
    assert choose_grid_shape(num_ranks, max_stages=5, max_shards=10) == GridShape(*expected)


@pytest.mark.parametrize(
    ("num_ranks", "requested", "limits", "expected"),
    [
        (16, {"data": 16}, (5, 10), (16, 1, 1)),
        (16, {"data": 2}, (5, 10), (2, 4, 2)),
        (16, {"stages": 4}, (5, 10), (4, 4, 1)),
        (16, {"shards": 4}, (5, 10), (4, 1, 4)),
        (16, {"stages": 1, "shards": 1}, (5, 10), (16, 1, 1)),
        (16, {"data": 1, "stages": 2, "shards": 8}, (5, 10), (1, 2, 8)),
        (16, {"data": 1}, (5, 10), (1, 4, 4)),
        (16, {}, (1, 10), (4, 1, 4)),
        (16, {}, (2, 1), (8, 2, 1)),
        (16, {}, (1, 1), (16, 1, 1)),
        (6, {"data": 1}, (2, 3), (1, 2, 3)),
        (7, {"data": 1}, (8, 3), (1, 7, 1)),
    ],
)
def test_requested_sizes_and_limits(
    num_ranks: int, requested: dict[str, int], limits: tuple[int, int], expected: tuple[int, int, int]
) -> None:
    found = choose_grid_shape(num_ranks, **requested, max_stages=limits[0], max_shards=limits[1])
    assert found == GridShape(*expected)


@pytest.mark.parametrize("num_ranks", range(1, 200))
def test_any_number_of_ranks_has_a_grid(num_ranks: int) -> None:
    found = choose_grid_shape(num_ranks, max_stages=5, max_shards=10)
    model = found.stages * found.shards
    assert found.num_ranks == num_ranks
    assert found.stages <= 5
    assert found.shards <= 10
    assert model * model <= num_ranks


@pytest.mark.parametrize(
    ("num_ranks", "requested", "limits", "message"),
    [
        (4, {"data": 3}, (5, 10), r"data=3 x stages=any x shards=any does not fit 4 rank\(s\)"),
        (4, {"data": 2, "stages": 2, "shards": 2}, (5, 10), r"data=2 x stages=2 x shards=2 does not fit 4 rank\(s\)"),
        (4, {"data": 8}, (5, 10), "change the sizes"),
        (16, {"stages": 6}, (5, 10), "grid.stages: this model can be cut into at most 5 stages, received 6"),
        (16, {"shards": 16}, (5, 10), "grid.shards: this model can be cut into at most 10 shards, received 16"),
        (7, {"data": 1}, (5, 6), "at most 5 stages and 6 shards"),
    ],
)
def test_impossible_requests(num_ranks: int, requested: dict[str, int], limits: tuple[int, int], message: str) -> None:
    with pytest.raises(GridError, match=message):
        choose_grid_shape(num_ranks, **requested, max_stages=limits[0], max_shards=limits[1])
