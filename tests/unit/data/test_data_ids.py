"""Inputs that are numbers of tokens, users or items: exact from the file to the batch."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from lepton_mpi.data.dataset import ArrayDataset, Dataset, Reshaped, Subset, id_counts, load_into_memory
from lepton_mpi.data.formats.csv import open_csv
from lepton_mpi.data.formats.hdf5 import Hdf5Dataset
from lepton_mpi.data.formats.npy import open_npy
from lepton_mpi.errors import DataError
from lepton_mpi.runtime.mpi import start_mpi

BIG = 2**53 - 1  # a float32 could not tell it from its neighbours


def pairs(values: object, dtype: object = np.int64) -> ArrayDataset:
    return ArrayDataset("pairs.npy", np.array(values, dtype), None, 0)


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, ">i8", np.float64])
def test_ids_are_exact(dtype: object) -> None:
    values = np.array([[0, BIG], [BIG - 1, 7], [3, 4]])
    dataset = pairs(values, dtype)
    for source in (dataset, load_into_memory(dataset, ids=True), Reshaped(Reshaped(dataset, (2, 1)), (2,))):
        ids = source.read_ids(np.array([2, 0, 1, 0]))
        assert ids.dtype == np.int64 and ids.dtype.isnative
        np.testing.assert_array_equal(ids, values[[2, 0, 1, 0]])
    assert dataset.read_ids(np.empty(0, np.int64)).shape == (0, 2)


@pytest.mark.parametrize("name", ["csv", "npy", "hdf5"])
def test_ids_are_exact_in_files(tmp_path: Path, name: str) -> None:
    values = np.array([[0, BIG], [BIG - 1, 7], [3, 2**24 + 1]])
    path = str(tmp_path / "d")
    dataset: Dataset
    if name == "csv":
        Path(path).write_text("user,item\n" + "\n".join(f"{u},{i}" for u, i in values))
        dataset = open_csv(path, "label", label_kind="none")
    elif name == "npy":
        np.save(tmp_path / "d.npy", values)
        dataset = open_npy(path + ".npy", label_kind="none")
    else:
        with h5py.File(path, "w") as file:
            file["x"] = values
        dataset = Hdf5Dataset(path, "x", "y", label_kind="none")
    assert dataset.label_kind == "none"
    np.testing.assert_array_equal(dataset.read_ids(np.arange(3)), values)
    np.testing.assert_array_equal(load_into_memory(dataset).read_ids(np.array([2, 0])), values[[2, 0]])
    assert dataset.read_inputs(np.arange(3)).dtype == np.float32


BAD = [
    ([[1, 2], [3, -1]], np.int8, "sample 1: expected an integer from 0, found -1"),
    ([[1, 2], [2**63, 1]], np.uint64, f"sample 1: expected an integer from 0, found {2**63}"),
    ([[1, 2.5], [1, 1]], np.float32, "sample 0: expected an integer of 0 .. 16777215, .* found 2.5"),
    ([[1, 2], [1, np.nan]], np.float64, "sample 1: expected an integer of .* found nan"),
    ([[1, 2], [-1, 2]], np.float16, "sample 1: expected an integer of 0 .. 2047, .* found -1.0"),
    ([[2**24, 0], [1, 0]], np.float32, "sample 0: .* found 16777216"),
    ([[1, 2], [2**53, 0]], np.float64, "sample 1: .* found 9007199254740992"),
]


@pytest.mark.parametrize("values, dtype, message", BAD)
def test_what_is_no_id_is_named(values: object, dtype: type, message: str) -> None:
    dataset = pairs(values, dtype)
    with pytest.raises(DataError, match=f"pairs.npy, {message}"):
        dataset.read_ids(np.arange(2))
    with pytest.raises(DataError, match=f"pairs.npy, {message}"):  # numbered as in the file
        Subset(dataset, np.array([1, 0]), "other").read_ids(np.arange(2))
    with pytest.raises(DataError, match=message):
        id_counts(dataset, start_mpi())


def test_counts_of_ids() -> None:
    comm = start_mpi()
    assert id_counts(pairs([[3, 0, 1], [2, 9, 1]]), comm) == (4, 10, 2)
    assert id_counts(pairs(np.empty((0, 2))), comm) == (0, 0)
    many = np.random.default_rng(0).integers(0, 10**6, (150_000, 2))
    assert id_counts(pairs(many), comm) == tuple(many.max(axis=0) + 1)
    with pytest.raises(DataError, match=r"expected ids in columns, .* found samples \(2, 3\)"):
        id_counts(pairs(np.zeros((4, 2, 3))), comm)


@pytest.mark.parametrize("dtype, kept", [("u1", "u1"), (">i4", "i4"), ("?", "?"), ("f8", "f4"), ("f2", "f4")])
def test_integers_stay_small_in_memory(dtype: str, kept: str) -> None:
    raw = np.arange(6).reshape(3, 2).astype(dtype)
    loaded = load_into_memory(ArrayDataset("d", raw, np.array([0, 1, 2]), 3))
    assert loaded.read_raw(np.arange(3)).dtype == np.dtype(kept)
    x, y = loaded.read(np.array([2, 0]))
    np.testing.assert_array_equal(x, raw[[2, 0]].astype(np.float32))
    assert x.dtype == np.float32 and y.tolist() == [2, 0]
