"""What differs between two checkpoints, found in pieces of any size."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lepton_mpi.checkpoint import comparison
from lepton_mpi.checkpoint.comparison import compare_checkpoints
from lepton_mpi.checkpoint.layout import TensorSlice
from lepton_mpi.checkpoint.reader import CheckpointReader
from lepton_mpi.checkpoint.writer import write_checkpoint

WEIGHT = np.arange(105, dtype=np.float32).reshape(5, 7, 3) - 50


@pytest.fixture
def compare(comm, tmp_path):
    def run(first, second, attributes=({}, {})):
        paths = [
            write_checkpoint(
                comm, tmp_path / name, 1, [TensorSlice(p, a.shape, (0,) * a.ndim, a) for p, a in tensors.items()], more
            )
            for name, tensors, more in zip("ab", (first, second), attributes, strict=True)
        ]
        with CheckpointReader(paths[0]) as a, CheckpointReader(paths[1]) as b:
            return compare_checkpoints(a, b)

    return run


@pytest.mark.parametrize("piece_nbytes", [4, 8, 20, 84, 2**20])
def test_first_and_largest_difference_at_any_piece_size(compare, monkeypatch, piece_nbytes):
    monkeypatch.setattr(comparison, "PIECE_NBYTES", piece_nbytes)
    other = WEIGHT.copy()
    other[1, 2, 2] += 0.5
    other[3, 6, 0] = -other[3, 6, 0]
    other[4, 0, 1] -= 3
    found = compare({"/param/w": WEIGHT, "/param/b": WEIGHT[0]}, {"/param/w": other, "/param/b": WEIGHT[0]})
    assert (found.num_equal, found.is_equal) == (1, False)
    (difference,) = found.differences
    assert (difference.path, difference.num_different, difference.index) == ("/param/w", 3, (1, 2, 2))
    assert difference.values == (WEIGHT[1, 2, 2], WEIGHT[1, 2, 2] + 0.5)
    changed = np.abs(other - WEIGHT)
    assert difference.largest_absolute == changed.max()
    assert difference.largest_relative == pytest.approx((changed / np.maximum(np.abs(WEIGHT), np.abs(other)).clip(1e-9)).max())


def test_equal_bits_are_equal_whatever_they_mean(compare):
    odd = {"/x/nan": np.array([np.nan, np.inf, -0.0]), "/x/scalar": np.array(3, np.int16), "/x/empty": np.zeros((0, 4), np.uint8)}
    assert compare(odd, odd, ({"grid": "a", "best": math.nan}, {"grid": "b", "best": math.nan})).is_equal


def test_bits_count_rather_than_values(compare):
    first, second = np.array([1.0, np.nan, 0.0]), np.array([1.0, 2.0, -0.0])
    (difference,) = compare({"/x/y": first}, {"/x/y": second}).differences
    assert (difference.num_different, difference.index) == (2, (1,))
    assert math.isnan(difference.largest_absolute)
    (zero,) = compare({"/x/z": first[2:]}, {"/x/z": second[2:]}).differences
    assert (zero.num_different, zero.largest_absolute, zero.largest_relative) == (1, 0.0, 0.0)


@pytest.mark.parametrize(
    ("first", "second", "largest"),
    [
        (np.array([2**63 - 1, 5]), np.array([2**63 - 2, 5]), 1.0),
        (np.array([2**64 - 1], np.uint64), np.array([0], np.uint64), 2.0**64),
        (np.array([-128], np.int8), np.array([127], np.int8), 255.0),
        (np.array([65504], np.float16), np.array([-65504], np.float16), 131008.0),
    ],
)
def test_extreme_values(compare, first, second, largest):
    (difference,) = compare({"/x/y": first}, {"/x/y": second}).differences
    assert difference.largest_absolute == largest


def test_tensors_and_shapes_and_attributes_of_one_side(compare):
    shapes = np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32)
    found = compare({"/p/a": WEIGHT, "/p/s": shapes[0]}, {"/p/b": WEIGHT, "/p/s": shapes[1]}, ({"epoch": 1, "n": 1}, {"n": 1.0}))
    sides = {d.path: (d.first is not None, d.second is not None, d.is_comparable) for d in found.differences}
    assert sides == {"/p/a": (True, False, False), "/p/b": (False, True, False), "/p/s": (True, True, False)}
    assert found.attributes == {"epoch": (1, None), "n": (1, 1.0)}
