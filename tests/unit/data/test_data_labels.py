"""Labels of every kind and shape, in every format that holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from lepton_mpi.config.schema import DataConfig
from lepton_mpi.data.dataset import ArrayDataset, Dataset, Reshaped, Subset, load_into_memory
from lepton_mpi.data.formats.csv import open_csv
from lepton_mpi.data.needs import DataNeeds
from lepton_mpi.data.splits import open_datasets, open_inputs, open_test_set
from lepton_mpi.errors import DataError
from lepton_mpi.models.task import LabelKind
from lepton_mpi.runtime.mpi import start_mpi

X = np.random.default_rng(0).random((50, 3, 4), np.float32)
FORMATS = ["npz", "npy", "hdf5"]
VALUES = {
    "one": np.random.default_rng(1).standard_normal(50),
    "some": np.random.default_rng(2).standard_normal((50, 3)).astype(np.float32),
    "integers": np.arange(50)[:, None] - 20,
    "image": np.random.default_rng(3).standard_normal((50, 3, 4)).astype(">f4"),
}
CLASSES = {
    "one": np.arange(50) % 5,
    "column": np.arange(50.0)[:, None] % 5,
    "pixels": (np.arange(600) % 5).reshape(50, 3, 4).astype(np.uint8),
    "float pixels": (np.arange(600.0) % 5).reshape(50, 12),
}


def write(folder: Path, name: str, labels: np.ndarray, stem: str = "d") -> DataConfig:
    path, labels_path = folder / f"{stem}.{name}", ""
    if name == "npz":
        np.savez(path, x=X, y=labels)
    elif name == "npy":
        np.save(path, X)
        labels_path = str(folder / f"{stem}-y.npy")
        np.save(labels_path, labels)
    else:
        with h5py.File(path, "w") as file:
            file["x"], file["y"] = X, labels
    return DataConfig(format=name, path=str(path), labels_path=labels_path)


def check_splits(config: DataConfig, kind: LabelKind, expected: np.ndarray, label_shape: tuple[int, ...]) -> None:
    splits = open_datasets(config, start_mpi(), DataNeeds(kind))
    found_x, found_y = [], []
    for dataset in (splits.train, splits.test):
        assert (dataset.label_kind, dataset.label_shape) == (kind, label_shape)
        assert dataset.num_classes == (5 if kind == "class" else 0)
        x, y = dataset.read(np.arange(dataset.num_samples))
        assert y.dtype == (np.float32 if kind == "value" else np.int64) and y.shape[1:] == label_shape
        assert dataset.read_labels(np.empty(0, np.int64)).shape == (0, *label_shape)
        found_x.append(x)
        found_y.append(y)
    assert (splits.train.num_samples, splits.test.num_samples) == (40, 10)
    order = np.argsort(np.concatenate(found_x)[:, 0, 0])
    there = np.argsort(X[:, 0, 0])
    np.testing.assert_array_equal(np.concatenate(found_x)[order], X[there])
    np.testing.assert_array_equal(np.concatenate(found_y)[order], expected[there])


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("labels", VALUES.values(), ids=VALUES)
def test_values(tmp_path: Path, name: str, labels: np.ndarray) -> None:
    check_splits(write(tmp_path, name, labels), "value", labels.astype(np.float32), labels.shape[1:])


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("case", CLASSES)
def test_classes(tmp_path: Path, name: str, case: str) -> None:
    shape = () if case == "column" else CLASSES[case].shape[1:]
    check_splits(write(tmp_path, name, CLASSES[case]), "class", CLASSES[case].reshape(50, *shape), shape)


@pytest.mark.parametrize("name", FORMATS)
def test_none(tmp_path: Path, name: str) -> None:
    config = write(tmp_path, name, np.array(["no label"] * 7).astype("S"))  # they are not looked at
    check_splits(config, "none", np.full(50, -1), ())
    np.savez(tmp_path / "bare.npz", x=X)
    check_splits(DataConfig(format="npz", path=str(tmp_path / "bare.npz")), "none", np.full(50, -1), ())


BAD: dict[str, tuple[LabelKind, Any, str]] = {
    "nan": ("value", np.where(np.arange(50) == 7, np.nan, 1.0), "sample 7: expected finite labels, found 'nan'"),
    "inf": ("value", np.where(np.arange(100).reshape(50, 2) == 9, np.inf, 1.0), "sample 4: expected finite labels"),
    "too large": ("value", np.where(np.arange(50) == 49, 1e39, 1.0), "sample 49: expected finite labels, found '1e"),
    "text": ("value", np.array([b"a"] * 50), "expected real numbers as labels"),
    "count": ("value", np.zeros((49, 2)), r"expected 50 labels, one for each sample, found an array of shape \(49, 2\)"),
    "no values": ("value", np.zeros((50, 0)), r"expected 50 labels, .* shape \(50, 0\)"),
    "scalar": ("value", np.float64(3), r"expected 50 labels, .* shape \(\)"),
    "class text": ("class", np.array([[b"a"]] * 50), "expected integer labels"),
    "negative": ("class", np.where(np.arange(200).reshape(50, 2, 2) == 50, -1, 0), "sample 12: expected an integer label .* '-1'"),
    "fraction": ("class", np.full((50, 2), 0.5), "sample 0: expected an integer label .* found '0.5'"),
    "huge": ("class", np.full((50, 2), 2**31), "sample 0: expected an integer label 0 .. 2147483647"),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind, labels, message", BAD.values(), ids=BAD)
def test_bad_labels_are_named(tmp_path: Path, name: str, kind: LabelKind, labels: np.ndarray, message: str) -> None:
    config = write(tmp_path, name, labels)
    with pytest.raises(DataError, match=message) as caught:
        open_datasets(config, start_mpi(), DataNeeds(kind))
    assert str(tmp_path) in str(caught.value)


def test_labels_of_the_test_file_must_fit(tmp_path: Path) -> None:
    train, test = write(tmp_path, "npz", CLASSES["pixels"]), write(tmp_path, "npz", CLASSES["float pixels"], "test")
    config = DataConfig(format="npz", path=train.path, test_path=test.path)
    with pytest.raises(DataError, match=r"expected labels of shape \(3, 4\) as in .* found \(12,\)"):
        open_datasets(config, start_mpi())


def test_the_digits_as_values_or_without_labels() -> None:
    as_values = open_test_set(DataConfig(), DataNeeds("value"))
    assert as_values.label_kind == "value" and set(as_values.read_labels(np.arange(359)).tolist()) == set(range(10))
    assert open_test_set(DataConfig(), DataNeeds("none")).label_kind == "none"
    assert open_inputs("", "digits", DataConfig(), DataNeeds("none")).num_classes == 0


def csv(tmp_path: Path, text: str) -> str:
    (tmp_path / "t.csv").write_text(text)
    return str(tmp_path / "t.csv")


def test_csv_with_several_columns_of_values(tmp_path: Path) -> None:
    path = csv(tmp_path, "y2,a,y1,b\n1.5,2,-3,4\n0.25,6,7,8.5\n")
    dataset = open_csv(path, "y1, y2", label_kind="value")
    assert (dataset.label_kind, dataset.label_shape, dataset.input_shape) == ("value", (2,), (2,))
    x, y = dataset.read(np.arange(2))
    np.testing.assert_array_equal(x, [[2, 4], [6, 8.5]])
    np.testing.assert_array_equal(y, np.array([[-3, 1.5], [7, 0.25]], np.float32))
    one = open_csv(path, "y1", label_kind="value")
    assert (one.label_shape, one.input_shape) == ((), (3,)) and one.read_labels(np.array([1, 0])).tolist() == [7, -3]
    none = open_csv(path, "y1,missing", label_kind="none")
    assert (none.label_kind, none.input_shape) == ("none", (3,))
    assert open_csv(path, "missing", label_kind="value", labels_required=False).label_kind == "none"


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("a,y\n1,2\n", "y,z", "line 1: expected a column 'z'"),
        ("a,y\n1,2\n", "y,", "line 1: expected a column ''"),
        ("a,y\n1,nan\n", "y", "line 2, column 'y': expected a finite label, found 'nan'"),
        ("a,y\n1,2\n1,1e39\n", "y", "line 3, column 'y': expected a finite label, found '1e39'"),
        ("a,y\n1,x\n", "y", "line 2, column 'y': expected a finite label, found 'x'"),
        ("y,z\n1,2\n", "y,z", "expected columns of features, found 'y,z' alone"),
    ],
)
def test_csv_damage_is_named(tmp_path: Path, text: str, column: str, message: str) -> None:
    path = csv(tmp_path, text)
    with pytest.raises(DataError, match=message):
        open_csv(path, column, label_kind="value")
    if "column '" in message and "line 1" in message:
        with pytest.raises(DataError, match=message):  # one of two is a mistake in the name
            open_csv(path, column, label_kind="value", labels_required=False)


@pytest.mark.parametrize("labels", [VALUES["some"], CLASSES["pixels"], None])
def test_views_keep_kind_and_shape(labels: np.ndarray | None) -> None:
    dataset = ArrayDataset("d", X, labels, 5)
    views: list[Dataset] = [Subset(dataset, np.arange(50)), Reshaped(dataset, (12,)), load_into_memory(dataset)]
    for view in views:
        assert (view.label_kind, view.label_shape, view.num_classes) == (
            dataset.label_kind,
            dataset.label_shape,
            dataset.num_classes,
        )
        found = view.read_labels(np.array([3, 1]))
        np.testing.assert_array_equal(found, dataset.read_labels(np.array([3, 1])))
        assert found.dtype == dataset.read_labels(np.array([3])).dtype
