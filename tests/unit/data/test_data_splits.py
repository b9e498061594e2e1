"""Opening what the configuration names: the hold-out, test files, impossible combinations, guessed formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_mpi.config.schema import DataConfig
from lepton_mpi.data.selection import hold_out
from lepton_mpi.data.splits import open_datasets, open_inputs
from lepton_mpi.errors import ConfigError, DataError
from lepton_mpi.runtime.mpi import start_mpi

X = np.random.default_rng(0).integers(0, 255, (60, 4, 4)).astype(np.uint8)
Y = (np.arange(60) % 3).astype(np.uint8)


def idx_bytes(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Hold the same 60 samples in every format."""
    (tmp_path / "x-idx").write_bytes(idx_bytes(X))
    (tmp_path / "y-idx").write_bytes(idx_bytes(Y))
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    np.savez(tmp_path / "d.npz", x=X, y=Y)
    names = [f"p{i}" for i in range(16)]
    lines = [",".join(map(str, [*row.reshape(-1), label])) for row, label in zip(X, Y, strict=True)]
    (tmp_path / "d.csv").write_text("\n".join([",".join([*names, "label"]), *lines]))
    (tmp_path / "u.csv").write_text("\n".join([",".join(names), *(line.rpartition(",")[0] for line in lines)]))
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["x"], file["y"] = X, Y
    return tmp_path


FILES = {"idx": ("x-idx", "y-idx"), "npy": ("x.npy", "y.npy"), "npz": ("d.npz", ""), "csv": ("d.csv", ""), "hdf5": ("d.h5", "")}


def config_for(folder: Path, name: str, **more: Any) -> DataConfig:
    path, labels_path = FILES[name]
    return DataConfig(format=name, path=str(folder / path), labels_path=str(folder / labels_path) if labels_path else "", **more)


@pytest.mark.parametrize("name", FILES)
def test_all_formats_hold_out_the_same_samples(folder: Path, name: str) -> None:
    splits = open_datasets(config_for(folder, name), start_mpi())
    held = hold_out(Y.astype(np.int64), 0.2)
    for dataset, indices in ((splits.train, np.flatnonzero(~held)), (splits.test, np.flatnonzero(held))):
        assert (dataset.num_samples, dataset.num_classes) == (len(indices), 3)
        x, y = dataset.read(np.arange(dataset.num_samples))
        np.testing.assert_array_equal(x.reshape(-1, 16), X[indices].reshape(-1, 16))
        np.testing.assert_array_equal(y, Y[indices])


@pytest.mark.parametrize("name", FILES)
def test_test_files(folder: Path, name: str) -> None:
    config = config_for(folder, name)
    config = config_for(folder, name, test_path=config.path, test_labels_path=config.labels_path)
    splits = open_datasets(config, start_mpi())
    assert splits.train.num_samples == splits.test.num_samples == 60


def test_digits_are_the_default() -> None:
    splits = open_datasets(DataConfig(), start_mpi())
    assert (splits.train.num_samples, splits.test.num_samples) == (1438, 359)
    counts = np.bincount(splits.test.read_labels(np.arange(359)))
    assert counts.min() >= 34 and counts.max() <= 38
    whole = open_datasets(DataConfig(test_fraction=0.0), start_mpi())
    assert (whole.train.num_samples, whole.test.num_samples) == (1797, 0)


@settings(deadline=None)
@given(labels=st.lists(st.integers(0, 5), min_size=1, max_size=200).map(np.array), fraction=st.floats(0, 0.9))
def test_hold_out_is_in_proportion_and_leaves_every_class(labels: np.ndarray, fraction: float) -> None:
    held = hold_out(labels, fraction)
    classes, counts = np.unique(labels, return_counts=True)
    spare = len(labels) - len(classes)
    total = min(int(len(labels) * fraction), spare)
    assert held.sum() == total
    for value, count in zip(classes, counts, strict=True):
        share = (count - 1) * total / max(spare, 1)
        assert abs(held[labels == value].sum() - share) < 1 + 1e-9
        assert (~held[labels == value]).any()
    np.testing.assert_array_equal(hold_out(labels, fraction), held)


def test_hold_out_is_random_within_a_class() -> None:
    held = np.flatnonzero(hold_out(np.zeros(1000, np.int64), 0.5))
    assert len(held) == 500 and 400 < (held < 500).sum() + 150 < 500 + 150 and len(np.unique(np.diff(held))) > 3


@pytest.mark.parametrize("name", ["idx", "npy"])
def test_training_needs_labels(folder: Path, name: str) -> None:
    path = str(folder / FILES[name][0])
    with pytest.raises(DataError, match="expected labelled samples"):
        open_datasets(DataConfig(format=name, path=path), start_mpi())


def test_a_test_file_must_fit(folder: Path) -> None:
    np.savez(folder / "wide.npz", x=X[:, :, :2], y=Y)
    with pytest.raises(DataError, match=r"expected samples of shape \(4, 4\) .* found \(4, 2\)"):
        open_datasets(config_for(folder, "npz", test_path=str(folder / "wide.npz")), start_mpi())
    np.savez(folder / "more.npz", x=X, y=Y + 1)
    with pytest.raises(DataError, match=r"sample 2: expected an integer label 0 .. 2 \(3 classes\), found '3'"):
        open_datasets(config_for(folder, "npz", test_path=str(folder / "more.npz")), start_mpi())


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        open_datasets(DataConfig(format="csv", path=str(tmp_path / "none.csv")), start_mpi())


GUESSED = {"x-idx": 0, "x.npy": 0, "d.npz": 3, "d.h5": 3, "d.csv": 3, "u.csv": 0}


@pytest.mark.parametrize("name, num_classes", GUESSED.items())
def test_inputs_of_a_guessed_format(folder: Path, name: str, num_classes: int) -> None:
    dataset = open_inputs(str(folder / name), "", DataConfig())
    assert (dataset.num_samples, dataset.num_classes) == (60, num_classes)
    np.testing.assert_array_equal(dataset.read_inputs(np.arange(60)).reshape(-1, 16), X.reshape(-1, 16))


def test_inputs_of_a_given_format(folder: Path) -> None:
    (folder / "table").write_bytes((folder / "u.csv").read_bytes())
    assert open_inputs(str(folder / "table"), "csv", DataConfig()).num_samples == 60
    with pytest.raises(DataError, match="expected one of idx, npz"):
        open_inputs(str(folder / "table"), "", DataConfig())
    assert open_inputs("", "digits", DataConfig()).num_samples == 1797
    with pytest.raises(ConfigError, match=r"data\.format: expected"):
        open_inputs(str(folder / "table"), "arrow", DataConfig())
