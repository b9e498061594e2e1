"""The CSV format: round trips, every kind of damage, and random bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lepton_mpi.data.formats import csv
from lepton_mpi.data.formats.csv import open_csv
from lepton_mpi.errors import DataError


def write(tmp_path: Path, content: str | bytes) -> str:
    path = tmp_path / "table.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_round_trip(tmp_path: Path, newline: str, mark: str) -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((20, 3)).astype(np.float32)
    labels = rng.integers(0, 4, 20)
    labels[0] = 3
    lines = ["a, label ,b,c", *(f"{v[0]},{y}, {v[1]!s} ,{v[2]!s}" for v, y in zip(values, labels, strict=True)), "", ""]
    dataset = open_csv(write(tmp_path, mark + newline.join(lines)), "label")
    assert (dataset.num_samples, dataset.input_shape, dataset.num_classes, dataset.name) == (20, (3,), 4, "table.csv")
    x, y = dataset.read(np.arange(20))
    assert x.dtype == np.float32 and y.dtype == np.int64
    np.testing.assert_array_equal(x, values)
    np.testing.assert_array_equal(y, labels)


def test_nan_and_infinity_are_kept_in_features(tmp_path: Path) -> None:
    x = open_csv(write(tmp_path, "a,b,c,label\nnan,inf,1e39,1.0\n"), "label").read_inputs(np.array([0]))
    np.testing.assert_array_equal(x, [[np.nan, np.inf, np.inf]])


def test_label_column_is_optional_for_prediction(tmp_path: Path) -> None:
    dataset = open_csv(write(tmp_path, "a,b\n1,2\n"), "label", labels_required=False)
    assert (dataset.num_classes, dataset.input_shape) == (0, (2,))
    dataset = open_csv(write(tmp_path, "a,label\n1,2\n"), "label", labels_required=False)
    assert (dataset.num_classes, dataset.input_shape) == (3, (1,))


def test_numbered_columns_are_names(tmp_path: Path) -> None:
    assert open_csv(write(tmp_path, "0,1\n5,6\n"), "label", labels_required=False).num_samples == 1


DAMAGED = {
    "missing column": ("a,b\n1,2\n", "line 1: expected a column 'label', found 'a', 'b': set data.label_column"),
    "many columns": (",".join(f"c{i}" for i in range(20)), "'c7' and 12 more"),
    "unnamed column": (",label\n1,2\n", "line 1, column 1: expected a column name"),
    "no names": ("1.5,2\n1,2\n", "line 1: expected column names, found '1.5', '2'"),
    "blank": ("\n\n", "expected column names, found no column"),
    "repeated names": ("a,label,a\n1,2,3\n", "expected distinct column names, found 'a'"),
    "no features": ("label\n1\n", "expected columns of features"),
    "no rows": ("a,label\n", "expected samples below"),
    "short row": ("a,label\n1,2\n3\n", "line 3: expected 2 cells, found 1"),
    "long row": ("a,label\n1,2,\n", "line 2: expected 2 cells, found 3"),
    "text": ("a,label,b\n1,0,2\n1,0,x\n", "line 3, column 'b': expected a number, found 'x'"),
    "empty cell": ("a,label\n,0\n", "line 2, column 'a': expected a number, found ''"),
    "underscore": ("a,label\n1_0,0\n", "line 2, column 'a': expected a number, found '1_0'"),
    "label text": ("a,label\n1,x\n", "line 2, column 'label': expected an integer label"),
    "label empty": ("a,label\n1,\n", "line 2, column 'label'"),
    "label nan": ("a,label\n1,nan\n", "line 2, column 'label'.*found 'nan'"),
    "label inf": ("a,label\n1,inf\n", "line 2, column 'label'"),
    "label fraction": ("a,label\n1,0.5\n", "line 2, column 'label'.*found '0.5'"),
    "label negative": ("a,label\n1,-1\n", "line 2, column 'label'.*found '-1'"),
    "label too large": ("a,label\n1,5\n", r"line 2, column 'label': expected an integer label 0 .. 4 \(5 classes\), found '5'"),
    "encoding": (b"a,label\n1,2\n1,\xff2\n", "line 3: expected UTF-8 text, found byte 0xff as byte 3 of the line"),
    "hdf5": (b"\x89HDF\r\n\x1a\n\0\0", "looks like hdf5: set data.format"),
    "quotes": ('a,label\n"1,2\n', "line 2: expected comma-separated cells"),
    "empty": ("", "found an empty file"),
}


@pytest.mark.parametrize("content, message", DAMAGED.values(), ids=DAMAGED)
def test_damage_is_named(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(DataError, match=message) as caught:
        open_csv(path, "label", 5)
    assert path in str(caught.value)


def test_a_file_that_changes_meanwhile(tmp_path: Path) -> None:
    assert "changed while it was read" in str(csv._undecodable(write(tmp_path, "a,label\n")))


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    content=st.one_of(
        st.binary(max_size=60),
        st.text(st.sampled_from('01,,.\n\r"-e_n\0é\u2028'), max_size=40).map(lambda text: b"a,label\n" + text.encode()),
    ),
    labels_required=st.booleans(),
)
def test_any_bytes_are_data_or_a_data_error(tmp_path: Path, content: bytes, labels_required: bool) -> None:
    path = write(tmp_path, content)
    try:
        dataset = open_csv(path, "label", labels_required=labels_required)
    except DataError:
        return
    x, y = dataset.read(np.arange(dataset.num_samples))
    assert x.shape == (dataset.num_samples, *dataset.input_shape) and (y < max(dataset.num_classes, 1)).all()
