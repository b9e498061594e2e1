"""The IDX format: round trips, every kind of damage, and random bytes."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lepton_mpi.data.dataset import Dataset
from lepton_mpi.data.formats.idx import open_idx
from lepton_mpi.errors import DataError

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def encode_idx(values: np.ndarray) -> bytes:
    code = CODES[values.dtype.str[1:]]
    header = bytes([0, 0, code, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.astype(values.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
@pytest.mark.parametrize("dtype", CODES)
def test_round_trip(tmp_path: Path, dtype: str, compress) -> None:
    images = np.arange(5 * 3 * 2).reshape(5, 3, 2).astype(dtype)
    labels = np.array([2, 0, 1, 1, 2], "u1")
    (tmp_path / "x").write_bytes(compress(encode_idx(images)))
    (tmp_path / "y").write_bytes(compress(encode_idx(labels)))
    dataset = open_idx(str(tmp_path / "x"), str(tmp_path / "y"))
    assert (dataset.num_samples, dataset.input_shape, dataset.num_classes, dataset.name) == (5, (3, 2), 3, "x")
    x, y = dataset.read(np.array([4, 0, 0]))
    assert x.dtype == np.float32 and y.dtype == np.int64
    np.testing.assert_array_equal(x, images[[4, 0, 0]].astype(np.float32))
    np.testing.assert_array_equal(y, [2, 2, 2])


def test_without_labels(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(encode_idx(np.ones((2, 3), "f4")))
    dataset = open_idx(str(tmp_path / "x"))
    assert dataset.num_classes == 0
    np.testing.assert_array_equal(dataset.read_labels(np.array([0, 1])), [-1, -1])


GOOD = encode_idx(np.zeros((4, 3), "u1"))
DAMAGED = {
    "magic": (b"\1" + GOOD[1:], "offset 0: expected an IDX magic number .* found 01 00 08 02"),
    "type": (b"\0\0\x0a" + GOOD[3:], "offset 0: expected an IDX magic number"),
    "dims": (b"\0\0\x08\x21" + GOOD[4:], "up to 32 dims"),
    "short header": (GOOD[:3], "offset 0"),
    "short dims": (GOOD[:9], "offset 4: expected 2 dims of 4 bytes, found 5 bytes"),
    "short": (GOOD[:-1], "expected 24 bytes, for a header and 4 x 3 elements of 1 bytes, found 23 bytes"),
    "long": (GOOD + b"\0", "expected 24 bytes.*found 25 bytes"),
    "short gzip": (gzip.compress(GOOD[:-2]), "expected 24 bytes.*found 22 bytes after decompression"),
    "long gzip": (gzip.compress(GOOD + b"\0\0"), "expected 24 bytes.*found more after decompression"),
    "cut gzip": (gzip.compress(GOOD)[:-9], "damaged gzip stream"),
    "bad gzip": (gzip.compress(GOOD)[:12] + bytes(20), "damaged gzip stream"),
    "huge dims": (b"\0\0\x0e\x04" + b"\xff" * 16, "cut short"),
    "huge dims gzip": (gzip.compress(b"\0\0\x0e\x04" + b"\xff" * 16), "cut short"),
    "one dim": (encode_idx(np.zeros(4, "u1")), "expected inputs of shape"),
    "no samples": (encode_idx(np.zeros((0, 3), "u1")), r"found \(0, 3\)"),
    "empty": (b"", "found an empty file"),
    "npy": (b"\x93NUMPY\1\0", "looks like npy: set data.format"),
}


@pytest.mark.parametrize("content, message", DAMAGED.values(), ids=DAMAGED)
def test_damage_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        open_idx(str(tmp_path / "x"))
    assert str(tmp_path / "x") in str(caught.value)


LABELS = {
    "count": (np.zeros(3, "u1"), 0, r"expected 4 labels, .* found an array of shape \(3,\)"),
    "negative": (np.array([0, -1, 0, 0], "i1"), 0, "sample 1: expected an integer label 0 .. 2147483647, found '-1'"),
    "too large": (np.array([0, 1, 2, 3], "u1"), 3, r"sample 3: expected an integer label 0 .. 2 \(3 classes\), found '3'"),
    "fraction": (np.array([0, 0.5, 0, 0], "f4"), 0, "sample 1: .* found '0.5'"),
    "nan": (np.array([0, 0, np.nan, 0], "f8"), 0, "sample 2: .* found 'nan'"),
    "huge": (np.array([0, 0, 1e300, 0], "f8"), 0, "sample 2"),
}


@pytest.mark.parametrize("labels, num_classes, message", LABELS.values(), ids=LABELS)
def test_wrong_labels_are_named(tmp_path: Path, labels: np.ndarray, num_classes: int, message: str) -> None:
    (tmp_path / "x").write_bytes(GOOD)
    (tmp_path / "y").write_bytes(encode_idx(labels))
    with pytest.raises(DataError, match=message) as caught:
        open_idx(str(tmp_path / "x"), str(tmp_path / "y"), num_classes)
    assert str(tmp_path / "y") in str(caught.value)


def test_missing_folder_and_impossible_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        open_idx(str(tmp_path / "none"))
    with pytest.raises(DataError, match="found a folder"):
        open_idx(str(tmp_path))
    with pytest.raises(DataError, match="expected a readable data file"):
        open_idx("a\0b")


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    start=st.one_of(
        st.binary(max_size=8),
        st.builds(lambda code, dims: bytes([0, 0, code, dims]), st.sampled_from(sorted(CODES.values())), st.integers(0, 255)),
    ),
    rest=st.one_of(st.binary(max_size=64), st.lists(st.integers(0, 3), max_size=12).map(lambda d: struct.pack(f">{len(d)}I", *d))),
    compressed=st.booleans(),
    cut=st.integers(0, 40),
)
def test_any_bytes_are_data_or_a_data_error(tmp_path: Path, start: bytes, rest: bytes, compressed: bool, cut: int) -> None:
    content = start + rest
    (tmp_path / "x").write_bytes(gzip.compress(content)[: 1000 - cut if cut < 20 else -cut] if compressed else content)
    try:
        dataset = open_idx(str(tmp_path / "x"))
    except DataError:
        return
    assert isinstance(dataset, Dataset)
    assert dataset.read_inputs(np.arange(dataset.num_samples)).shape == (dataset.num_samples, *dataset.input_shape)
