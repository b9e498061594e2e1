"""CSV in chunks: the fast way and the cell-by-cell way agree, wherever a block of the file ends."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path

import numpy as np
import pytest
from damaged_bytes import damaged
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lepton_mpi.data.formats import csv as csv_format
from lepton_mpi.data.formats import delimited
from lepton_mpi.data.formats.csv import CsvReader, open_csv
from lepton_mpi.data.formats.delimited import count_lines, parse_numbers, read_blocks
from lepton_mpi.errors import DataError

READ_BLOCKS = read_blocks


def small_blocks(monkeypatch: pytest.MonkeyPatch, nbytes: int) -> None:
    monkeypatch.setattr(csv_format, "read_blocks", lambda file: READ_BLOCKS(file, nbytes))


def write(tmp_path: Path, content: str | bytes) -> str:
    path = tmp_path / "table.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


@given(content=st.text(st.sampled_from("ab\n\r"), max_size=60).map(str.encode), nbytes=st.integers(1, 20))
def test_blocks_are_whole_lines(content: bytes, nbytes: int) -> None:
    blocks = list(read_blocks(io.BytesIO(content), nbytes))
    assert b"".join(block.content for block in blocks) == content
    for block in blocks:
        assert content[block.offset :].startswith(block.content)
        assert block.line == 1 + len((content[: block.offset] + b"x").splitlines()) - 1
    assert all(block.content.endswith(b"\n") for block in blocks[:-1])
    assert count_lines(content) == len((content + b"x").splitlines()) - 1


@pytest.mark.parametrize(
    ("content", "columns", "expected"),
    [
        (b"1,2\n3,4\n", 2, [[1, 2], [3, 4]]),
        (b" 1 ,\t2\r\n+3e2,-.5", 2, [[1, 2], [300, -0.5]]),
        (b"nan,-INF", 2, [[np.nan, -np.inf]]),
        (b"1\n2\n", 1, [[1], [2]]),
        (b"", 1, None),
        (b"1,2\n3\n4,5,6\n", 2, None),
        (b"1,2,3\n4\n", 2, None),
        (b"1\n\n2\n", 1, None),
        (b"1,\n", 2, None),
        (b"1 2,3\n", 2, None),
        (b"1_0,3\n", 2, None),
        (b'"1",3\n', 2, None),
        (b"1,3\r4,5\n", 2, None),
        (b"1e,3\n", 2, None),
        ("\u0661,3\n".encode(), 2, None),
    ],
)
def test_plain_numbers(content: bytes, columns: int, expected: list[list[float]] | None) -> None:
    found = parse_numbers(content, columns)
    if expected is None:
        assert found is None
    else:
        np.testing.assert_array_equal(found, np.array(expected, float))


CELLS = st.one_of(
    st.integers(-5, 5).map(str),
    st.floats(width=32).map(repr),
    st.sampled_from(["", " 1", "2 ", '"3"', '"4\n"', "5\r", "x", "1_0", "\u0663", "1e400", "nan"]),
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    rows=st.lists(st.lists(CELLS, min_size=2, max_size=2), max_size=6),
    newline=st.sampled_from(["\n", "\r\n", "\n\n", "\r"]),
    nbytes=st.integers(1, 40),
    label_kind=st.sampled_from(["class", "value", "none"]),
)
def test_the_ends_of_blocks_do_not_matter(tmp_path: Path, rows, newline: str, nbytes: int, label_kind) -> None:
    path = write(tmp_path, newline.join(["a,label", *(",".join(row) for row in rows)]))
    found = []
    for size in (nbytes, 1 << 20):
        for parse in (parse_numbers, lambda content, columns: None):  # by blocks where that can be, and by cells
            with pytest.MonkeyPatch.context() as patch:
                small_blocks(patch, size)
                patch.setattr(csv_format, "parse_numbers", parse)
                try:
                    chunks = list(CsvReader(path, "label", label_kind=label_kind).chunks())
                except DataError as error:
                    found.append(str(error))
                    continue
                features = np.concatenate([x for x, _ in chunks])
                labels = [] if chunks[0][1] is None else np.concatenate([y for _, y in chunks])
                found.append(f"{features.dtype} {features.tolist()} {labels}")
    assert found.count(found[0]) == 4, found


def test_chunks_of_a_long_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch, 1000)
    monkeypatch.setattr(csv_format, "_CHUNK_ROWS", 10)
    values = np.random.default_rng(0).integers(0, 9, (500, 3))
    lines = [",".join(map(str, row)) for row in values]
    lines[300] = f'"{values[300, 0]}",{values[300, 1]},{values[300, 2]}'
    path = write(tmp_path, "\n".join(["a,label,b", *lines]))
    reader = CsvReader(path, "label")
    assert reader.feature_names == ["a", "b"] and reader.num_labels == 1
    for _ in range(2):  # it can be read again
        chunks = list(reader.chunks())
        assert max(len(x) for x, _ in chunks) < 200 and len(chunks) > 20
        np.testing.assert_array_equal(np.concatenate([x for x, _ in chunks]), values[:, [0, 2]])
        np.testing.assert_array_equal(np.concatenate([y for _, y in chunks]), values[:, 1])
    lines[450] = "1,2,x"
    with pytest.raises(DataError, match="line 452, column 'b': expected a number, found 'x'"):
        list(CsvReader(write(tmp_path, "\n".join(["a,label,b", *lines])), "label").chunks())
    del lines[300]
    with pytest.raises(DataError, match="line 451, column 'b': expected a number, found 'x'"):
        list(CsvReader(write(tmp_path, "\n".join(["a,label,b", *lines])), "label").chunks())


def test_features_keep_one_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch, 1)
    for cells, dtype in ((["1", "2"], np.int32), (["1", str(2**40)], np.int64), (["1", str(2**40), "0.5"], np.float32)):
        dataset = open_csv(write(tmp_path, "\n".join(["a", *cells])), "", labels_required=False)
        assert dataset.read_raw(np.arange(1)).dtype == dtype
        np.testing.assert_array_equal(dataset.read_inputs(np.arange(len(cells)))[:, 0], np.array(cells, np.float32))


def test_as_the_csv_module_reads(tmp_path: Path) -> None:
    rows = [[repr(value) for value in row] for row in np.random.default_rng(0).standard_normal((2000, 5)).tolist()]
    file = io.StringIO(newline="")
    csv.writer(file).writerows([list("abcde"), *rows])
    dataset = open_csv(write(tmp_path, file.getvalue()), "none", labels_required=False)
    np.testing.assert_array_equal(dataset.read_inputs(np.arange(2000)), np.array(rows, np.float64).astype(np.float32))


def test_many_rows_are_read_fast(tmp_path: Path) -> None:
    line = "0.1234,-1.2345,2.3456,12.3,4.0,0.5,-6.789,7.1,8.0,9.9,3\n"
    path = write(tmp_path, "a,b,c,d,e,f,g,h,i,j,label\n" + line * 100_000)
    start = time.perf_counter()
    assert open_csv(path, "label").num_samples == 100_000
    assert time.perf_counter() - start < 5  # two million in 30 s would leave 1.5 s; a busy core takes longer
    assert len(line) * 100_000 > delimited.BLOCK_NBYTES  # over several blocks


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=2000)
@given(content=damaged(b"a,label\n1,2\n3.5,0\n", b'\xef\xbb\xbfa,"label"\r\n"1",2\r\nnan,0\r\n'), nbytes=st.integers(1, 30))
def test_any_bytes_are_data_or_a_data_error(tmp_path: Path, content: bytes, nbytes: int) -> None:
    path = write(tmp_path, content)
    with pytest.MonkeyPatch.context() as patch:
        small_blocks(patch, nbytes)
        try:
            dataset = open_csv(path, "label")
        except DataError as error:
            assert path in str(error)
            return
    assert dataset.num_samples > 0
