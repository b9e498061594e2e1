"""Slices, extents, shares and the coverage check."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_mpi.checkpoint import drivers, layout, own_cores, plan
from lepton_mpi.checkpoint.drivers import _runs, write_direct
from lepton_mpi.checkpoint.layout import Extent, TensorInfo, TensorSlice, digest
from lepton_mpi.checkpoint.plan import count_rounds, make_plan
from lepton_mpi.errors import CheckpointError


@pytest.mark.parametrize(
    "path", ["w", "/", "//w", "/a/", "/a/../b", "/./b", "/meta", "/meta/x", "/integrity/extents", "/a b", "/a\n", "", "/größe"]
)
def test_slice_with_an_impossible_path(path):
    with pytest.raises(CheckpointError, match="tensor path"):
        TensorSlice(path, (2,), (0,), np.zeros(2)).check()


@pytest.mark.parametrize("dtype", [">f4", "bool", "object", "S3", "complex64"])
def test_slice_with_an_impossible_dtype(dtype):
    with pytest.raises(CheckpointError, match="cannot be stored"):
        TensorSlice("/w", (2,), (0,), np.zeros(2, dtype)).check()


@pytest.mark.parametrize(
    ("shape", "starts", "block"),
    [((4,), (3,), (2,)), ((4,), (-1,), (2,)), ((4, 4), (0,), (2,)), ((), (0,), ()), ((4,), (0,), (2, 1))],
)
def test_slice_outside_its_tensor(shape, starts, block):
    with pytest.raises(CheckpointError, match="does not lie in the global shape"):
        TensorSlice("/w", shape, starts, np.zeros(block)).check()


shapes = st.lists(st.integers(0, 6), max_size=4).map(tuple)


@given(shapes, st.integers(1, 64), st.data())
def test_extents_rebuild_their_slice(shape, limit, data):
    whole = np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
    starts = tuple(data.draw(st.integers(0, n)) for n in shape)
    stops = tuple(data.draw(st.integers(a, n)) for a, n in zip(starts, shape, strict=True))
    block = whole[tuple(map(slice, starts, stops))]
    rebuilt = np.full(shape, -1)
    previous, layout.EXTENT_NBYTES = layout.EXTENT_NBYTES, limit
    try:
        extents = list(TensorSlice("/w", shape, starts, block).extents())
    finally:
        layout.EXTENT_NBYTES = previous
    for extent in extents:
        assert extent.array.size
        assert extent.array.nbytes <= max(limit, 8)
        assert digest(extent.array) == digest(np.array(extent.array, order="F"))
        rebuilt[tuple(slice(s, s + n) for s, n in zip(extent.starts, extent.array.shape, strict=True))] = extent.array
    expected = np.full(shape, -1)
    expected[tuple(map(slice, starts, stops))] = block
    np.testing.assert_array_equal(rebuilt, expected)


@given(shapes.filter(math.prod), st.data())
def test_runs_put_every_element_at_its_file_position(shape, data):
    whole = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    starts = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    stops = tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(starts, shape, strict=True))
    block = whole[tuple(map(slice, starts, stops))]
    written = bytearray(whole.nbytes)
    count = 0
    for position, run in _runs(Extent("/w", starts, block), TensorInfo(shape, whole.dtype)):
        assert not any(written[position : position + len(run)][4:])
        written[position : position + len(run)] = run
        count += 1
    expected = np.zeros_like(whole)
    expected[tuple(map(slice, starts, stops))] = block
    assert bytes(written) == expected.tobytes()
    if block.shape[1:] == shape[1:]:
        assert count == 1


def test_digest_is_zlibs_crc32():
    assert digest(np.frombuffer(b"123456789", np.uint8)) == 0xCBF43926  # the check value of CRC-32/ISO-HDLC


@given(shapes.filter(lambda s: len(s) > 0 and math.prod(s) > 0), st.data())
def test_overlap_is_found_exactly_where_counts_exceed_one(shape, data):
    blocks = []
    counts = np.zeros(shape, int)
    for _ in range(data.draw(st.integers(1, 5))):
        starts = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
        stops = tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(starts, shape, strict=True))
        blocks.append((starts, stops))
        counts[tuple(map(slice, starts, stops))] += 1
    starts, stops = (np.array(side) for side in zip(*blocks, strict=True))
    try:
        plan._check_overlap("/w", starts, stops, np.arange(len(blocks), dtype=np.uint32))
        found = False
    except CheckpointError:
        found = True
    assert found == bool((counts > 1).any())


def test_scalar_twice_and_missing(comm):
    scalar = TensorSlice("/w", (), (), np.array(1.0))
    with pytest.raises(CheckpointError, match=r"rank 0's block \[\].*overlap"):
        make_plan(comm, [scalar, scalar])
    with pytest.raises(CheckpointError, match="hold 3 of its 4 elements"):
        make_plan(comm, [TensorSlice("/w", (4,), (0,), np.zeros(3))])


def test_tensor_inside_a_tensor(comm):
    slices = [TensorSlice(path, (1,), (0,), np.zeros(1)) for path in ("/a", "/a.b", "/a/b")]
    with pytest.raises(CheckpointError, match="/a is a tensor too"):
        make_plan(comm, slices)


def test_tensor_with_two_dtypes(comm):
    with pytest.raises(CheckpointError, match="must agree"):
        make_plan(comm, [TensorSlice("/a", (2,), (0,), np.zeros(1)), TensorSlice("/a", (2,), (1,), np.zeros(1, np.float32))])


def test_plan_lists_extents_by_tensor_and_position(comm):
    ones = np.ones((2, 3), np.float32)
    slices = [TensorSlice("/b", (4, 3), (row, 0), ones) for row in (2, 0)]
    made = make_plan(comm, [*slices, TensorSlice("/a", (), (), np.array(1.0))])
    assert list(made.tensors) == ["/a", "/b"]
    assert made.num_rounds == {"/a": 1, "/b": 2}
    assert made.table["tensor"].tolist() == [0, 1, 1]
    assert made.table["starts"].tolist() == [[0, 0], [0, 0], [2, 0]]
    assert made.table["shape"].tolist() == [[0, 0], [2, 3], [2, 3]]


@pytest.mark.parametrize("cores", [1, 4])
def test_what_is_written_and_its_digests_are_the_same_by_any_number_of_threads(comm, tmp_path, monkeypatch, cores):
    monkeypatch.setattr(own_cores, "usable_cores", lambda: cores)
    monkeypatch.setattr(layout, "EXTENT_NBYTES", 1000)
    monkeypatch.setattr(drivers, "PIECE_NBYTES", 300)
    values = np.random.default_rng(1).random((60, 7))
    made = make_plan(comm, [TensorSlice("/a", (60, 7), (0, 0), values), TensorSlice("/b", (60, 3), (0, 0), values[:, 2:5])])
    file = tmp_path / "data"
    file.write_bytes(bytes(6000))
    digests = write_direct(file, made, {"/a": 100, "/b": 4000})
    assert len(made.extents) > 4
    assert digests == [digest(extent.array) for extent in made.extents]
    content = file.read_bytes()
    assert content[100 : 100 + values.nbytes] == values.tobytes()
    assert content[4000 : 4000 + 60 * 3 * 8] == values[:, 2:5].tobytes()
    assert not any(content[:100] + content[100 + values.nbytes : 4000] + content[4000 + 60 * 3 * 8 :])


def test_large_contiguous_extents_are_not_joined(monkeypatch):
    monkeypatch.setattr(plan, "LARGE_NBYTES", 400)
    tensors = {path: TensorInfo((20, 10), np.dtype(np.float32)) for path in ("/columns", "/none", "/rows", "/small")}
    rows = [
        [("/rows", (0, 0), (10, 10)), ("/columns", (0, 0), (20, 5)), ("/small", (0, 0), (15, 10))],
        [("/rows", (10, 0), (10, 10)), ("/columns", (0, 5), (20, 5)), ("/small", (15, 0), (5, 10))],
    ]
    assert count_rounds(tensors, rows) == {"/columns": 1, "/none": 0, "/rows": 0, "/small": 1}
