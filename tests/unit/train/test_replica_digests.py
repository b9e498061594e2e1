"""Which copies differ, and how that is said."""

from __future__ import annotations

import numpy as np
import pytest

from lepton_mpi.train.replicas import describe_copies, find_different


def place(rank: int) -> str:
    return f"rank {rank}"


def test_equal_copies_do_not_differ() -> None:
    keys = np.array([[7, 8], [8, 7], [9, -1]])
    digests = np.array([[1, 2], [2, 1], [5, 0]], np.uint32)
    assert find_different(keys, digests, np.arange(3)) == {}


def test_each_key_is_compared_with_its_own() -> None:
    keys = np.array([[7, 8], [8, 7], [7, -1]])
    digests = np.array([[1, 2], [3, 1], [4, 0]], np.uint32)
    assert find_different(keys, digests, np.array([0, 1, 5])) == {7: {0: 1, 1: 1, 5: 4}, 8: {0: 2, 1: 3}}


def test_nothing_at_all() -> None:
    assert find_different(np.full((3, 0), -1), np.zeros((3, 0), np.uint32), np.arange(3)) == {}


@pytest.mark.parametrize(
    ("copies", "text"),
    [
        ({0: 1, 4: 1, 5: 2}, "the copy of rank 5 differs from 2 others"),
        ({0: 2, 4: 1, 5: 1, 6: 1, 7: 3}, "the copy of rank 0, rank 7 differs from 3 others"),
        ({0: 2, 4: 1}, "the copies of rank 0, rank 4 differ, and none is that of most"),
        ({0: 2, 4: 1, 5: 2, 6: 1}, "the copies of rank 0, rank 4, rank 5, rank 6 differ, and none is that of most"),
    ],
)
def test_the_few_are_named_or_all(copies: dict[int, int], text: str) -> None:
    assert describe_copies(copies, place) == text
