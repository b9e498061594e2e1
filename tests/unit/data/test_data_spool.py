"""Tables as temporary NPY files: types that widen, tables of several blocks, and what cannot be read or written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from lepton_mpi.config.schema import DataConfig
from lepton_mpi.data.formats.csv import open_csv
from lepton_mpi.data.needs import DataNeeds
from lepton_mpi.data.splits import open_datasets
from lepton_mpi.data.storage import spool
from lepton_mpi.data.storage.spool import GrowingNpy, spooled
from lepton_mpi.errors import DataError, LeptonError
from lepton_mpi.runtime.mpi import start_mpi


@pytest.mark.parametrize("order", ["narrow first", "wide first"])
def test_growing_tmp_path_take_the_widest_type(tmp_path: Path, order: str) -> None:
    parts = [np.array([[1, -2], [3, 4]], np.int32), np.array([[2**40, 5]], np.int64), np.array([[0.5, np.nan]], np.float32)]
    for count in (1, 2, 3):
        chosen = parts[:count] if order == "narrow first" else parts[:count][::-1]
        path = tmp_path / f"{count}.npy"
        with GrowingNpy(path) as file:
            for part in [*chosen, *chosen]:
                file.append(part)
        found, expected = np.load(path), np.concatenate([part.astype(parts[count - 1].dtype) for part in [*chosen, *chosen]])
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    assert sorted(os.listdir(tmp_path)) == ["1.npy", "2.npy", "3.npy"]


def test_a_large_table_is_read_as_a_small_one(tmp_path: Path) -> None:
    """Several blocks of the file: integers, then large ones, then a fraction."""
    rows = [f"{n},{n + (1 << 35 if n > 500_000 else 0)},{n % 4}" for n in range(700_000)] + ["0.25,1,3"]
    path = tmp_path / "d.csv"
    path.write_text("a,b,label\n" + "\n".join(rows) + "\n")
    config, comm = DataConfig(format="csv", path=str(path), test_path=str(path), label_column="label"), start_mpi()
    with spooled(config, DataNeeds(), tmp_path / "out", comm) as readable:
        assert readable.format == "npy" and readable.test_path != str(path)
        splits = open_datasets(readable, comm, DataNeeds())
        expected = open_csv(str(path), "label")
        for dataset in (splits.train, splits.test):
            everything = np.arange(expected.num_samples)
            np.testing.assert_array_equal(expected.read_raw(everything), dataset.read_raw(everything))
            np.testing.assert_array_equal(expected.read_labels(everything), dataset.read_labels(everything))
            assert dataset.read_raw(everything[:1]).dtype == np.float32
            assert (dataset.name, dataset.num_classes) == ("d.csv", 4)
    assert os.listdir(tmp_path) == ["d.csv"]


def test_tables_that_cannot_be_spooled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "d.csv"
    table.write_text("a,label\n1,0\n")
    comm, config = start_mpi(), DataConfig(format="csv", path=str(table))
    with (
        pytest.raises(LeptonError, match="cannot write temporary files beside"),
        spooled(config, DataNeeds(), tmp_path / "d.csv" / "x", comm),
    ):
        pass
    with (
        pytest.raises(DataError, match="expected a column 'none'"),
        spooled(DataConfig(format="csv", path=str(table), label_column="none"), DataNeeds(), tmp_path / "out", comm),
    ):
        pass

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(spool.GrowingNpy, "append", full)
    with (
        pytest.raises(LeptonError, match=r"temporary files .*: No space left on device"),
        spooled(config, DataNeeds(), tmp_path / "out", comm),
    ):
        pass
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
