"""Rows of HDF5 datasets read from a memory map: the same as through HDF5, for every way a dataset can be stored."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from lepton_mpi.data.formats.hdf5 import Hdf5Dataset
from lepton_mpi.data.formats.hdf5_rows import find_plain_rows

X = np.random.default_rng(0).integers(0, 100, (50, 4, 6))
STORED = {
    "one piece": (True, {}),
    "chunks of rows": (True, {"chunks": (7, 4, 6)}),
    "growing": (True, {"chunks": (7, 4, 6), "maxshape": (None, 4, 6)}),
    "single rows": (True, {"chunks": (1, 4, 6)}),
    "cut rows": (False, {"chunks": (7, 4, 3)}),
    "compressed": (False, {"chunks": (7, 4, 6), "compression": "gzip"}),
    "shuffled": (False, {"chunks": (7, 4, 6), "shuffle": True}),
    "checked": (False, {"chunks": (7, 4, 6), "fletcher32": True}),
}
INDICES = ([], [49], [3, 4, 5, 6, 7, 8], [5, 4, 3], [7, 7, 0, 49, 7], list(range(50)))


@pytest.mark.parametrize("dtype", ["u1", "<i4", ">i8", ">f4", "f8", "f2", "?"])
@pytest.mark.parametrize(("plain", "options"), STORED.values(), ids=STORED)
def test_the_same_rows(tmp_path: Path, plain: bool, options: dict[str, object], dtype: str) -> None:
    path, x = str(tmp_path / "d.h5"), X.astype(dtype)
    with h5py.File(path, "w") as file:
        file.create_dataset("first", data=np.arange(1000))
        file.create_dataset("x", data=x, **options)
    with h5py.File(path) as file:
        assert (find_plain_rows(file["x"], path) is not None) == plain
    dataset = Hdf5Dataset(path, "x", "y", label_kind="none")
    for indices in INDICES:
        found = dataset.read_raw(np.array(indices, np.int64))
        assert found.dtype == x.dtype and found.flags.writeable
        np.testing.assert_array_equal(found, x[indices])


def test_what_only_hdf5_can_read(tmp_path: Path) -> None:
    path = str(tmp_path / "d.h5")
    with h5py.File(path, "w", userblock_size=512) as file:
        file["x"] = X
        assert find_plain_rows(file["x"], path) is None
    with h5py.File(path, "w") as file:
        unwritten = file.create_dataset("unwritten", (50, 4), "i4", chunks=(5, 4))
        unwritten[:5] = 1
        odd = h5py.h5t.STD_I32LE.copy()
        odd.set_precision(24)
        space = h5py.h5s.create_simple((50, 4))
        h5py.h5d.create(file.id, b"odd", odd, space)
        compact = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        compact.set_layout(h5py.h5d.COMPACT)
        h5py.h5d.create(file.id, b"compact", h5py.h5t.STD_I32LE, space, dcpl=compact)
        file["nothing"] = np.zeros((0, 4))
        file["odd"][:] = file["compact"][:] = 3
        for name in ("unwritten", "odd", "compact", "nothing"):
            assert find_plain_rows(file[name], path) is None, name
    rows = Hdf5Dataset(path, "unwritten", "y", label_kind="none").read_raw(np.array([30, 2]))
    np.testing.assert_array_equal(rows, [[0] * 4, [1] * 4])
    for name in ("odd", "compact"):
        assert (Hdf5Dataset(path, name, "y", label_kind="none").read_raw(np.array([30, 2])) == 3).all()


def test_rows_beyond_the_end_are_left_to_hdf5(tmp_path: Path) -> None:
    """Another file of the same name, shorter than the one that is open."""
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["x"] = X
        (tmp_path / "short").write_bytes(b"x" * 3000)
        assert find_plain_rows(file["x"], str(tmp_path / "short")) is None
