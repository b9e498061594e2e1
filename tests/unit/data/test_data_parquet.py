"""Parquet tables: written by pyarrow, read by row groups, and every way in which they can be wrong."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from damaged_bytes import damaged
from hypothesis import HealthCheck, given, settings

from lepton_mpi.config.schema import DataConfig
from lepton_mpi.data.formats import parquet
from lepton_mpi.data.formats.parquet import ParquetDataset
from lepton_mpi.data.needs import DataNeeds
from lepton_mpi.data.splits import open_datasets, open_inputs
from lepton_mpi.errors import ConfigError, DataError
from lepton_mpi.runtime.mpi import start_mpi

arrow = pytest.importorskip("pyarrow")
arrow_parquet = pytest.importorskip("pyarrow.parquet")
RNG = np.random.default_rng(0)
A, B, Y = RNG.standard_normal(50).astype(np.float32), RNG.integers(0, 9, 50).astype(np.int8), np.arange(50) % 3


def write(path: Path, columns: dict[str, object], rows: int = 7, **more: object) -> str:
    arrow_parquet.write_table(arrow.table(columns), path, row_group_size=rows, **more)
    return str(path)


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_round_trip(tmp_path: Path, compression: str) -> None:
    path = write(tmp_path / "t.parquet", {"a": A, "label": Y, "b": B}, compression=compression)
    dataset = ParquetDataset(path, "label")
    assert (dataset.num_samples, dataset.input_shape, dataset.num_classes) == (50, (2,), 3)
    order = np.random.default_rng(1).permutation(50)
    np.testing.assert_array_equal(dataset.read_inputs(order), np.stack([A, B], axis=1)[order])
    np.testing.assert_array_equal(dataset.read_labels(order), Y[order])
    assert dataset.read_raw(order[:0]).shape == (0, 2)
    splits = open_datasets(DataConfig(format="parquet", path=path), start_mpi())
    assert (splits.train.num_samples, splits.test.num_samples) == (40, 10)
    assert open_inputs(path, "", DataConfig()).num_samples == 50


def test_ids_stay_integers(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", {"u": np.arange(20) + 2**40, "i": np.arange(20, dtype=np.int16)})
    dataset = ParquetDataset(path, "label", labels_required=False)
    assert dataset.label_kind == "none" and dataset.read_raw(np.arange(1)).dtype == np.int64
    np.testing.assert_array_equal(dataset.read_ids(np.arange(20))[:, 0], np.arange(20) + 2**40)


def test_values_and_none(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", {"a": A, "y1": B, "y2": A * 2, "flag": B > 4})
    dataset = ParquetDataset(path, "y2, y1", label_kind="value")
    assert (dataset.label_shape, dataset.input_shape, dataset.label_kind) == ((2,), (2,), "value")
    np.testing.assert_array_equal(dataset.read_labels(np.arange(50)), np.stack([A * 2, B], axis=1).astype(np.float32))
    np.testing.assert_array_equal(dataset.read_raw(np.arange(50))[:, 1], B > 4)
    one = open_datasets(DataConfig(format="parquet", path=path, label_column="y1"), start_mpi(), DataNeeds("value")).train
    assert one.label_shape == () and one.read_labels(np.arange(1)).dtype == np.float32
    assert ParquetDataset(path, "y1", label_kind="none").input_shape == (3,)


def test_few_row_groups_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "t.parquet", {"a": A, "label": Y})
    dataset = ParquetDataset(path, "label")
    monkeypatch.setattr(parquet, "_CACHE_NBYTES", 59)  # two groups of 7 floats
    order = np.random.default_rng(1).permutation(50)
    for _ in range(2):
        np.testing.assert_array_equal(dataset.read_raw(order)[:, 0], A[order])
    assert len(dataset._cache) == 2


def content(columns: dict[str, object], **more: object) -> bytes:
    file = io.BytesIO()
    arrow_parquet.write_table(arrow.table(columns), file, **more)
    return file.getvalue()


GOOD = content({"a": A, "label": Y, "b": B}, row_group_size=20)
WRONG = {
    "empty": (b"", "found an empty file"),
    "magic": (b"\x93NUMPY\1\0" + bytes(100), "expected a Parquet file: .*looks like npy"),
    "cut": (GOOD[:-10], "expected a Parquet file"),
    "no rows": (content({"a": A[:0], "label": Y[:0]}), "expected rows, found none"),
    "missing": (content({"a": A, "b": B}), "expected a column 'label', found 'a', 'b': set data.label_column"),
    "alone": (content({"label": Y}), "expected columns of features, found label alone"),
    "text": (content({"a": ["x"] * 50, "label": Y}), "column 'a': expected numbers, found string"),
    "list": (content({"a": [[1]] * 50, "label": Y}), "column 'a': expected numbers, found list"),
    "label text": (
        content({"a": A, "label": ["x"] * 50}),
        "column 'label': expected integer labels, found elements of type object",
    ),
    "label fraction": (content({"a": A, "label": A}), r"column 'label', sample 0: expected an integer label"),
    "label empty": (content({"a": A, "label": [1, None] * 25}), "row group 0, column 'label': expected a number in each row"),
    "empty cell": (content({"a": [1.0, None] * 25, "label": Y}), "row group 0, column 'a': expected a number in each row"),
}


@pytest.mark.parametrize("bad, message", WRONG.values(), ids=WRONG)
def test_damage_is_named(tmp_path: Path, bad: bytes, message: str) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(bad)
    with pytest.raises(DataError, match=message) as caught:
        ParquetDataset(str(path), "label").read_raw(np.arange(50))
    assert str(path) in str(caught.value)


def test_repeated_names(tmp_path: Path) -> None:
    table = arrow.table([A, A, Y], names=["a", "a", "label"])
    arrow_parquet.write_table(table, tmp_path / "t")
    with pytest.raises(DataError, match="distinct column names"):
        ParquetDataset(str(tmp_path / "t"), "label")


def test_damaged_pages(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(GOOD[:4] + bytes(200) + GOOD[204:])
    with pytest.raises(DataError, match="row group 0: cannot be read"):
        ParquetDataset(str(path), "label").read_raw(np.arange(50))


def test_pyarrow_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "t.parquet", {"a": A, "label": Y})
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match=r"pip install lepton_mpi\[parquet\]"):
        ParquetDataset(path, "label")


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=5000)
@given(bad=damaged(GOOD, content({"a": A[:5], "label": Y[:5]}, compression="none", use_dictionary=False)))
def test_any_bytes_are_data_or_a_data_error(tmp_path: Path, bad: bytes) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(bad)
    try:
        dataset = ParquetDataset(str(path), "label")
        x, y = dataset.read(np.arange(dataset.num_samples))
    except DataError as error:
        assert str(path) in str(error)
        return
    assert x.shape == (len(y), *dataset.input_shape)
