"""NPY and NPZ files: round trips, every kind of damage, and random bytes."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lepton_mpi.data.formats.npy import open_npy
from lepton_mpi.data.formats.npz import open_npz
from lepton_mpi.errors import DataError

X = np.arange(24, dtype=np.int16).reshape(4, 1, 2, 3)
Y = np.array([0, 2, 1, 2])


def npy_bytes(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version)
    return buffer.getvalue()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["?", "u1", "<i8", ">f4", "f8", "f2"])
def test_npy_round_trip(tmp_path: Path, dtype: str, order: str) -> None:
    x = np.asarray(X, dtype, order=order)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", Y.reshape(4, 1))
    dataset = open_npy(str(tmp_path / "x.npy"), str(tmp_path / "y.npy"))
    assert (dataset.num_samples, dataset.input_shape, dataset.num_classes) == (4, (1, 2, 3), 3)
    read_x, read_y = dataset.read(np.array([3, 1]))
    assert read_x.dtype == np.float32
    np.testing.assert_array_equal(read_x, x[[3, 1]].astype(np.float32))
    np.testing.assert_array_equal(read_y, [2, 2])
    assert open_npy(str(tmp_path / "x.npy")).num_classes == 0


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_round_trip(tmp_path: Path, save) -> None:
    path = str(tmp_path / "d.npz")
    save(path, images=X, digits=Y.astype(np.float64), other=np.zeros(3))
    dataset = open_npz(path, "images", "digits", 5)
    assert (dataset.num_samples, dataset.input_shape, dataset.num_classes) == (4, (1, 2, 3), 5)
    np.testing.assert_array_equal(dataset.read_inputs(np.array([1])), X[[1]].astype(np.float32))
    np.testing.assert_array_equal(dataset.read_labels(np.arange(4)), Y)
    assert open_npz(path, "images", "none", labels_required=False).num_classes == 0


BAD_ARRAYS = {
    "objects": (np.array([[1, None]], object), "."),
    "text": (np.array([["a"]]), "expected real numbers, found elements of type <U1"),
    "compound": (np.zeros((2, 2), [("a", "f4")]), "expected real numbers"),
    "complex": (np.zeros((2, 2), complex), "expected real numbers, found elements of type complex128"),
    "dates": (np.zeros((2, 2), "M8[s]"), "expected real numbers"),
    "no dims": (np.array(1.0), r"expected inputs of shape \(samples, features...\)"),
    "no features": (np.zeros((3, 0)), r"found \(3, 0\)"),
}


@pytest.mark.parametrize("array, message", BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_arrays_that_are_no_inputs(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    np.savez(tmp_path / "d.npz", x=array, y=Y)
    with pytest.raises(DataError, match=message):
        open_npy(str(tmp_path / "x.npy"))
    with pytest.raises(DataError, match=message):
        open_npz(str(tmp_path / "d.npz"), "x", "y")


def test_labels_of_a_type_that_cannot_count(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=X, y=np.array(list("abcd")))
    with pytest.raises(DataError, match="array 'y': expected integer labels, found elements of type <U1"):
        open_npz(str(tmp_path / "d.npz"), "x", "y")


def test_missing_arrays_are_named(tmp_path: Path) -> None:
    path = str(tmp_path / "d.npz")
    np.savez(path, a=X, b=Y)
    with pytest.raises(DataError, match=r"expected an array 'x', found a, b: set data.inputs_name"):
        open_npz(path, "x", "b")
    with pytest.raises(DataError, match=r"expected an array 'y', found a, b: set data.labels_name"):
        open_npz(path, "a", "y")
    with zipfile.ZipFile(path, "w"):
        pass
    with pytest.raises(DataError, match="found no array"):
        open_npz(path, "a", "y")


def test_damaged_archives(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    path.write_bytes(npy_bytes(X))
    with pytest.raises(DataError, match=r"looks like npy: set data\.format"):
        open_npz(str(path), "x", "y")
    np.savez(path, x=X, y=Y)
    content = bytearray(path.read_bytes())
    content[content.index(b"\x93NUMPY")] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="array 'x': expected an NPZ archive"):
        open_npz(str(path), "x", "y")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", npy_bytes(X)[:-1])
    with pytest.raises(DataError, match="array 'x'"):
        open_npz(str(path), "x", "y")


DAMAGED = {
    "magic": b"\x93NUMPI" + npy_bytes(X)[6:],
    "version": b"\x93NUMPY\x09\x00" + npy_bytes(X)[8:],
    "short": npy_bytes(X)[:-1],
    "short header": npy_bytes(X)[:20],
    "header": npy_bytes(X).replace(b"'shape'", b"'shapf'"),
    "huge": npy_bytes(X).replace(b"(4, 1, 2, 3), }       ", b"(4" + b"0" * 15 + b", 1), }"),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_npy(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(DataError, match="expected an NPY array of numbers"):
        open_npy(str(tmp_path / "x.npy"))


def test_npy_with_something_appended(tmp_path: Path) -> None:
    content = npy_bytes(X) + b"x"
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(DataError, match=f"expected {len(content) - 1} bytes, .* found {len(content)}"):
        open_npy(str(tmp_path / "x.npy"))


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cut=st.integers(0, 200), place=st.integers(0, 199), value=st.integers(0, 255), archive=st.booleans())
def test_any_damage_is_data_or_a_data_error(tmp_path: Path, cut: int, place: int, value: int, archive: bool) -> None:
    buffer = io.BytesIO()
    if archive:
        np.savez(buffer, x=X, y=Y)
    else:
        np.lib.format.write_array(buffer, X)
    content = bytearray(buffer.getvalue())
    content[place % len(content)] = value
    (tmp_path / "d").write_bytes(content[: len(content) - cut // 2])
    try:
        dataset = open_npz(str(tmp_path / "d"), "x", "y") if archive else open_npy(str(tmp_path / "d"))
    except DataError:
        return
    assert dataset.read_inputs(np.arange(dataset.num_samples)).shape == (dataset.num_samples, *dataset.input_shape)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_arrays_of_an_archive_are_mapped(tmp_path: Path, order: str, version: tuple[int, int]) -> None:
    images = np.asarray(np.random.default_rng(1).integers(0, 255, (9, 4, 5)), order=order).astype(np.uint8, order="K")
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        for name, array in (("x", images), ("y", np.arange(9) % 3)):
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array, version)
    dataset = open_npz(str(tmp_path / "d.npz"), "x", "y")
    assert isinstance(dataset._inputs.base, np.memmap)  # no copy for each rank
    np.testing.assert_array_equal(dataset.read_inputs(np.arange(9)), images)


def test_a_changed_byte_of_an_archive_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, x=np.arange(4000.0).reshape(100, 40), y=np.arange(100) % 2)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"array 'x': expected an NPZ archive .*bad CRC-32"):
        open_npz(str(path), "x", "y")
