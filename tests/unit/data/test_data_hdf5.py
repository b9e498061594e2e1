"""HDF5 data files: rows in any order, every kind of damage; and the embedded digits."""

from __future__ import annotations

import gzip
import runpy
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from lepton_mpi.data.formats.digits import open_digits
from lepton_mpi.data.formats.hdf5 import Hdf5Dataset
from lepton_mpi.errors import DataError

X = np.random.default_rng(0).integers(-99, 99, (50, 2, 3)).astype(np.int16)
Y = np.arange(50) % 7


def write(tmp_path: Path, **datasets: object) -> str:
    path = str(tmp_path / "d.h5")
    with h5py.File(path, "w") as file:
        for name, value in datasets.items():
            file[name.replace("__", "/")] = value
    return path


INDICES = {
    "none": [],
    "one": [49],
    "backwards": [3, 2, 1, 0],
    "repeated": [7, 7, 0, 7],
    "scattered": [49, 0, 20, 0],
    "all": list(range(50)),
}


@pytest.mark.parametrize("indices", INDICES.values(), ids=INDICES)
@pytest.mark.parametrize("names", [("x", "y"), ("train/x", "train/y"), ("/train/x", "/train/y")])
def test_rows_in_any_order(tmp_path: Path, indices: list[int], names: tuple[str, str]) -> None:
    dataset = Hdf5Dataset(write(tmp_path, x=X, y=Y, train__x=X, train__y=Y), *names)
    assert (dataset.num_samples, dataset.input_shape, dataset.num_classes, dataset.name) == (50, (2, 3), 7, "d.h5")
    x, y = dataset.read(np.array(indices, np.int64))
    assert x.dtype == np.float32 and y.dtype == np.int64
    np.testing.assert_array_equal(x, X[indices].astype(np.float32))
    np.testing.assert_array_equal(y, Y[indices])


def test_without_labels(tmp_path: Path) -> None:
    dataset = Hdf5Dataset(write(tmp_path, x=X), "x", "y", labels_required=False)
    assert dataset.num_classes == 0
    np.testing.assert_array_equal(dataset.read_labels(np.array([1, 2])), [-1, -1])


DAMAGED = {
    "missing inputs": ({"a": X, "y": Y}, "expected a dataset 'x', found a, y in '/': set data.inputs_name"),
    "missing labels": ({"x": X}, "expected a dataset 'y', found x in '/': set data.labels_name"),
    "nothing": ({}, "found none in '/'"),
    "group": ({"x__a": X, "y": Y}, "expected a dataset 'x', found a group"),
    "soft link": ({"a": X, "x": h5py.SoftLink("/a"), "y": Y}, "expected 'x' in the file itself, found a link at 'x'"),
    "external link": ({"x": h5py.ExternalLink("other.h5", "/x"), "y": Y}, "found a link at 'x'"),
    "empty": ({"x": h5py.Empty("f4"), "y": Y}, "expected an array, found an empty dataset"),
    "scalar": ({"x": 1.0, "y": Y}, "expected inputs of shape"),
    "text": ({"x": np.array([[b"a"]]), "y": Y}, "dataset 'x': expected real numbers"),
    "compound": ({"x": np.zeros((50, 2), [("a", "f4")]), "y": Y}, "dataset 'x': expected real numbers"),
    "text labels": ({"x": X, "y": ["a"] * 50}, "dataset 'y': expected integer labels"),
    "labels": ({"x": X, "y": Y - 1}, "dataset 'y', sample 0: expected an integer label .* found '-1'"),
    "count": ({"x": X, "y": Y[1:]}, r"dataset 'y': expected 50 labels, .* found an array of shape \(49,\)"),
}


@pytest.mark.parametrize("datasets, message", DAMAGED.values(), ids=DAMAGED)
def test_damage_is_named(tmp_path: Path, datasets: dict[str, object], message: str) -> None:
    path = write(tmp_path, **datasets)
    with pytest.raises(DataError, match=message) as caught:
        Hdf5Dataset(path, "x", "y")
    assert path in str(caught.value)


@pytest.mark.parametrize("name", ["", ".", "x/", "x/a", "a//b", "a/./b"])
def test_names_that_lead_nowhere(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, y=Y, a__b=X, **({"x": X} if name == "x/a" else {}))
    with pytest.raises(DataError, match="expected a dataset"):
        Hdf5Dataset(path, name, "y")


def test_no_hdf5(tmp_path: Path) -> None:
    path = tmp_path / "d.h5"
    path.write_bytes(b"\x93NUMPY" + bytes(100))
    with pytest.raises(DataError, match=r"expected an HDF5 file.*looks like npy"):
        Hdf5Dataset(str(path), "x", "y")
    content = Path(write(tmp_path, x=X, y=Y)).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="expected an HDF5 file"):
        Hdf5Dataset(str(path), "x", "y")


def test_data_in_other_files_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "d.h5")
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (50, 2), "f4", external=[(str(tmp_path / "raw"), 0, 400)])
        layout = h5py.VirtualLayout((50, 2), "f4")
        layout[:] = h5py.VirtualSource("other.h5", "x", (50, 2))
        file.create_virtual_dataset("v", layout)
        file["y"] = Y
    for name in "xv":
        with pytest.raises(DataError, match=f"dataset '{name}': expected data in the file itself"):
            Hdf5Dataset(path, name, "y")


def test_rows_that_cannot_be_read(tmp_path: Path) -> None:
    path = str(tmp_path / "d.h5")
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=X, chunks=(10, 2, 3), fletcher32=True)
        file["y"] = Y
        offset = file["x"].id.get_chunk_info(2).byte_offset
    with open(path, "r+b") as raw:
        raw.seek(offset)
        raw.write(b"\xff\xff\xff")
    dataset = Hdf5Dataset(path, "x", "y")
    dataset.read_inputs(np.arange(10))
    with pytest.raises(DataError, match="dataset 'x': rows cannot be read"):
        dataset.read_inputs(np.array([25]))


def test_digits() -> None:
    dataset = open_digits()
    assert (dataset.num_samples, dataset.input_shape, dataset.num_classes, dataset.name) == (1797, (8, 8), 10, "digits")
    x, y = dataset.read(np.arange(1797))
    # Sums over the published file; the first image is a zero with this upper row.
    assert x.sum() == 561718 and x.min() == 0 and x.max() == 16
    np.testing.assert_array_equal(x[0, 0], [0, 0, 5, 13, 9, 1, 0, 0])
    np.testing.assert_array_equal(np.bincount(y), [178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
    assert open_digits(12).num_classes == 12
    with pytest.raises(DataError, match=r"expected an integer label 0 \.\. 4"):
        open_digits(5)


SCRIPT = Path(__file__).parents[3] / "scripts" / "make_digits.py"


def make_digits(monkeypatch: pytest.MonkeyPatch, folder: Path, pixels: np.ndarray, labels: np.ndarray) -> Path:
    with gzip.open(folder / "digits.csv.gz", "wt") as file:
        np.savetxt(file, np.column_stack([pixels.reshape(len(pixels), -1), labels]), "%g", ",")
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(folder / "digits.csv.gz"), str(folder / "digits.h5")])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    return folder / "digits.h5"


def test_the_script_makes_the_embedded_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = open_digits().read(np.arange(1797))
    embedded = Path(__file__).parents[3] / "lepton_mpi" / "data" / "formats" / "digits.h5"
    with h5py.File(make_digits(monkeypatch, tmp_path, x, y)) as made, h5py.File(embedded) as ours:
        assert dict(made.attrs) == dict(ours.attrs) and set(made) == set(ours) == {"x", "y"}
        for name in made:
            assert made[name].dtype == ours[name].dtype == np.uint8
            np.testing.assert_array_equal(made[name], ours[name])


@pytest.mark.parametrize("change", ["rows", "fraction", "pixel", "label"])
def test_the_script_refuses_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    x, y = open_digits().read(np.arange(1797 - (change == "rows")))
    x[5, 5, 5] = {"fraction": 0.5, "pixel": 17}.get(change, 1)
    y[5] = 10 if change == "label" else y[5]
    with pytest.raises(SystemExit, match="expected"):
        make_digits(monkeypatch, tmp_path, x, y)
