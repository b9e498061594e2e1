"""Streams of records: nothing is lost, nothing comes twice, and what is no record is named by its byte."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from lepton_mpi.config.schema import DataConfig
from lepton_mpi.data.loader import BatchCut
from lepton_mpi.data.needs import DataNeeds
from lepton_mpi.data.normalisation import Normalisation
from lepton_mpi.data.splits import open_whole
from lepton_mpi.data.streams.loader import StreamLoader, open_stream
from lepton_mpi.data.streams.records import Columns, Records, RecordStream, await_records, is_fifo, start_spool
from lepton_mpi.errors import ConfigError, DataError
from lepton_mpi.runtime.mpi import start_mpi

HEADER = b"a,b,label\n"


def rows(first: int, last: int) -> bytes:
    return b"".join(b"%d,%d.5,%d\n" % (i, i, i % 3) for i in range(first, last))


def read_all(stream: RecordStream, position: int, most: int) -> tuple[list[float], int]:
    """Return the first column of all records from a position on, taken so many at a time."""
    columns, found = Columns(["a", "b", "label"], ["label"], "class", 3), []
    while (records := stream.look(position, most)).count:
        inputs, _ = columns.parse(stream.read(records, 0, records.count))
        found += inputs[:, 0].tolist()
        position = records.following
    return found, position


@pytest.mark.parametrize("most", [1, 3, 100])
def test_a_growing_file(tmp_path: Path, most: int) -> None:
    path = tmp_path / "s.csv"
    path.write_bytes(HEADER + rows(0, 5) + b"5,5.")  # the last record is still being written
    stream = RecordStream(str(path))
    assert stream.names(1.0) == ["a", "b", "label"]
    found, position = read_all(stream, 0, most)
    assert found == [0, 1, 2, 3, 4]
    with open(path, "ab") as file:
        file.write(b"5,2\n\n" + rows(6, 9))
    assert read_all(stream, position, most)[0] == [5, 6, 7, 8]
    assert read_all(RecordStream(str(path)), position, most)[0] == [5, 6, 7, 8]  # after a resume


@pytest.mark.parametrize("most", [1, 3, 100])
def test_a_folder_that_others_write_to(tmp_path: Path, most: int) -> None:
    (tmp_path / "001.csv").write_bytes(HEADER + rows(0, 4))
    (tmp_path / ".002.csv").write_bytes(HEADER + b"half")
    stream = RecordStream(str(tmp_path))
    assert stream.names(1.0)[-1] == "label"
    found, position = read_all(stream, 0, most)
    assert found == [0, 1, 2, 3]
    (tmp_path / ".002.csv").write_bytes(HEADER + rows(4, 6))
    (tmp_path / ".002.csv").rename(tmp_path / "002.csv")
    (tmp_path / "003.csv").write_bytes(HEADER + rows(6, 7))
    found, position = read_all(stream, position, most)
    assert found == [4, 5, 6]
    again = RecordStream(str(tmp_path))
    again.names(1.0)
    assert read_all(again, 0, most)[0] == list(range(7))
    assert again.look(position, most).count == 0


def test_files_that_come_late_go_or_shrink_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_bytes(HEADER + rows(0, 4))
    stream = RecordStream(str(tmp_path))
    position = read_all(stream, 0, 9)[1]
    (tmp_path / "a.csv").write_bytes(HEADER)
    with pytest.raises(DataError, match=r"a\.csv came after b\.csv"):
        stream.look(position, 9)
    (tmp_path / "a.csv").unlink()
    (tmp_path / "b.csv").write_bytes(HEADER)
    with pytest.raises(DataError, match="it was cut"):
        stream.look(position, 9)
    (tmp_path / "b.csv").unlink()
    with pytest.raises(DataError, match=r"b\.csv, which was in use, is gone"):
        stream.look(position, 9)


def test_a_file_of_other_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(HEADER + rows(0, 1))
    (tmp_path / "b.csv").write_bytes(b"x,y,z\n" + rows(0, 1))
    stream = RecordStream(str(tmp_path))
    stream.names(1.0)
    with pytest.raises(DataError, match=r"b\.csv: expected the columns of the files before it, 'a,b,label', found 'x,y,z'"):
        read_all(stream, 0, 9)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"1,2\n", r"byte 10: expected 3 numbers, found 2 cells: '1,2'"),
        (b"1,x,0\n", r"byte 10: expected numbers separated by commas, found '1,x,0'"),
        (b"1,nan,0\n", r"byte 10: expected finite numbers"),
        (b"1,2,3\n", r"byte 10: expected a class from 0 to 2"),
        (b"1,2,0.5\n", r"byte 10: expected a class from 0 to 2"),
        (b"\xff,2,0\n", r"byte 10: expected numbers"),
    ],
)
def test_what_is_no_record(tmp_path: Path, line: bytes, message: str) -> None:
    (tmp_path / "s.csv").write_bytes(HEADER + line)
    with pytest.raises(DataError, match=message):
        read_all(RecordStream(str(tmp_path / "s.csv")), 0, 9)


@pytest.mark.parametrize("header", [b"a,,b\n", b"a,a\n", b"\xff,b\n"])
def test_what_is_no_line_of_names(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "s.csv").write_bytes(header)
    with pytest.raises(DataError, match="line 1: expected"):
        RecordStream(str(tmp_path / "s.csv")).names(1.0)


def test_missing_things(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found nothing"):
        RecordStream(str(tmp_path / "none"))
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(DataError, match=r"none came in 0\.1 s"):
        RecordStream(str(tmp_path / "empty")).names(0.1)
    with pytest.raises(DataError, match="expected a column 'y', found a, b"):
        Columns(["a", "b"], ["y"], "class", 2)
    with pytest.raises(DataError, match="besides the labels"):
        Columns(["y"], ["y"], "class", 2)


def test_values_and_no_labels() -> None:
    lines = [("s", b"1,2,3\n"), ("s", b"4,5,6\n")]
    inputs, labels = Columns(["a", "b", "c"], ["b"], "value", 0).parse(lines)
    assert (inputs.tolist(), labels.tolist(), labels.dtype) == ([[1, 3], [4, 6]], [2, 5], np.float32)
    assert Columns(["a", "b", "c"], ["a", "c"], "value", 0).parse(lines)[1].tolist() == [[1, 3], [4, 6]]
    assert Columns(["a", "b", "c"], [], "none", 0).parse(lines)[0].shape == (2, 3)


def test_waiting_for_a_batch_and_for_the_end(tmp_path: Path) -> None:
    path, comm = tmp_path / "s.csv", start_mpi().Dup()
    path.write_bytes(HEADER + rows(0, 2))
    stream = RecordStream(str(path))

    def write_later() -> None:
        time.sleep(0.2)
        with open(path, "ab") as file:
            file.write(rows(2, 7))
        time.sleep(0.2)
        Path(f"{path}.end").touch()

    writer = threading.Thread(target=write_later)
    writer.start()
    first = await_records(comm, stream, 0, 5, 60.0, lambda: False)
    assert isinstance(first, Records) and first.count == 5
    rest = await_records(comm, stream, first.following, 5, 60.0, lambda: False)
    assert isinstance(rest, Records) and rest.count == 2
    assert await_records(comm, stream, rest.following, 5, 60.0, lambda: False) == "ended"
    writer.join()
    Path(f"{path}.end").unlink()
    assert await_records(comm, stream, rest.following, 5, 60.0, lambda: True) == "stopped"
    assert await_records(comm, stream, rest.following, 5, 0.1, lambda: False) == "ended"  # nothing came for long enough


def test_a_fifo_is_kept(tmp_path: Path) -> None:
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    assert is_fifo(str(fifo)) and not is_fifo(str(tmp_path))
    spool = start_spool(str(fifo))
    stream = RecordStream(spool)
    with open(fifo, "wb") as writer:
        writer.write(HEADER + rows(0, 3) + b"3,3.5,0")  # no newline at the end
    assert stream.names(5.0) == ["a", "b", "label"]
    comm = start_mpi().Dup()
    found = await_records(comm, stream, 0, 4, 60.0, lambda: False)
    assert isinstance(found, Records) and found.count == 4
    with open(fifo, "wb") as writer:
        writer.write(rows(4, 6))
    more = await_records(comm, stream, found.following, 2, 60.0, lambda: False)
    assert isinstance(more, Records) and more.count == 2
    assert Path(spool).read_bytes() == HEADER + rows(0, 3) + b"3,3.5,0\n" + rows(4, 6)
    with open(fifo, "wb") as writer:
        writer.write(rows(6, 7))
    Path(f"{fifo}.end").touch()
    last = await_records(comm, stream, more.following, 9, 60.0, lambda: False)
    assert isinstance(last, Records) and last.count == 1
    assert await_records(comm, stream, last.following, 9, 60.0, lambda: False) == "ended"


@pytest.mark.parametrize("data_size", [1, 2, 3, 5])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_each_record_goes_to_one_rank(tmp_path: Path, data_size: int, micro_batches: int) -> None:
    path, comm = tmp_path / "s.csv", start_mpi().Dup()
    path.write_bytes(HEADER + rows(0, 23))
    Path(f"{path}.end").touch()
    config = DataConfig(format="stream", path=str(path), num_classes=3)
    loaders = [
        StreamLoader(
            open_stream(config, comm, DataNeeds("class")),
            Normalisation.identity((2,)),
            global_batch=10,
            cut=BatchCut(rank, data_size, micro_batches),
        )
        for rank in range(data_size)
    ]
    position, sizes, seen = 0, [], []
    while loaders[0].await_batch(comm, position, lambda: False) == "ready":
        for loader in loaders[1:]:
            assert loader.await_batch(comm, position, lambda: False) == "ready"
        batches = [loader.batch(0, position) for loader in loaders]
        for m in range(micro_batches):
            for batch in batches:
                values = batch.inputs[m][:, 0].astype(int).tolist()
                assert [value % 3 for value in values] == batch.labels[m].tolist()
                assert values == list(range(sum(sizes) + batch.first_rows[m], sum(sizes) + batch.first_rows[m] + batch.sizes[m]))
                seen += values
        sizes.append(batches[0].num_global)
        position = batches[0].following[1]
    assert (sizes, sorted(seen)) == ([10, 10, 3], list(range(23)))
    with pytest.raises(DataError, match="no way back"):
        loaders[0].batch(0, 0)


@pytest.mark.parametrize("record", [b"1.5,2,3\n", b"-1,2,3\n", b"1e300,2,3\n"])
def test_what_is_no_number_of_a_user_or_item(tmp_path: Path, record: bytes) -> None:
    path, comm = tmp_path / "s.csv", start_mpi().Dup()
    path.write_bytes(b"user,item,label\n0,1,4\n" + record)
    Path(f"{path}.end").touch()
    opened = open_stream(DataConfig(format="stream", path=str(path)), comm, DataNeeds("value"))
    loader = StreamLoader(opened, Normalisation.identity(), global_batch=2, input_kind="ids")
    assert loader.await_batch(comm, 0, lambda: False) == "ready"
    with pytest.raises(DataError, match=r"s\.csv, byte 22: expected whole numbers from 0"):
        loader.batch(0, 0)


def test_tasks_that_make_their_own_labels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_bytes(HEADER + rows(0, 4))
    with pytest.raises(ConfigError, match=r"model\.task: a ranking"):
        open_stream(DataConfig(format="stream", path=str(path)), start_mpi().Dup(), DataNeeds("none"))


def test_a_stream_is_for_training_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_bytes(HEADER + rows(0, 4))
    with pytest.raises(ConfigError, match=r"data\.format stream: .* data\.format csv"):
        open_whole(DataConfig(format="stream", path=str(path)), start_mpi())
