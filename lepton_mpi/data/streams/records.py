"""Records that arrive while training runs: lines of a growing file, of a folder of files, or of a FIFO.

A record is a line of comma-separated numbers that ends in a newline; the first line of a file names the columns. A position
in a stream is a number of bytes, counted over all of its files in the order of their names: what a checkpoint keeps, so that
after a resume the next record is the one after the last that was used. A FIFO can be read only once, so rank 0 first copies
what comes out of it to a file, which is then the stream.
"""

from __future__ import annotations

import os
import select
import stat
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Literal, cast, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.comm.agreement import do_on_all
from lepton_mpi.comm.contract import collective
from lepton_mpi.errors import DataError
from lepton_mpi.models.task import LabelKind
from lepton_mpi.runtime.mpi import MPI

# A file beside the stream's (or in its folder) that says that nothing more will come.
END_SUFFIX: Final = ".end"
END_FILE: Final = "END"
# Beside a FIFO: what came out of it.
SPOOL_SUFFIX: Final = ".spool"
# How often a waiting rank looks for more, and how long before all ranks hear of it, so that a stop is heeded.
_LOOK_S: Final = 0.02
_ROUND_S: Final = 0.5
# File systems of several nodes show what another node wrote a little later.
_SHARED_FILE_S: Final = 60.0
_BLOCK_NBYTES: Final = 1 << 20


@final
@dataclass(frozen=True)
class Records:
    """Records that are there to be used.

    Attributes:
        position: where they begin.
        following: where the next ones will begin.
        count: how many they are.
    """

    position: int
    following: int
    count: int


@final
class RecordStream:
    """The lines of a growing file or of the files of a folder, by position. Local.

    In a folder the files count in the order of their names; a file must be complete when it gets its name (write it under
    one that begins with a dot, then rename it), and names must grow. Files that were used must stay as long as the run.

    Args:
        path: a file, or a folder of files.

    Raises:
        DataError: there is no such file or folder.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise DataError(f"{path}: expected a file, folder or FIFO with records, found nothing: start what writes it first")
        self._is_folder = self.path.is_dir()
        self._files: list[tuple[Path, int]] = []  # with the position where each begins
        self._header = b""

    def names(self, timeout_s: float) -> list[str]:
        """Return the names of the columns, waiting for the first line. Local.

        Raises:
            DataError: no line has come in that time, or it is no line of names.
        """
        begin = time.monotonic()
        while not self._header:
            self._look_for_files()
            if self._files:
                self._header = self._read_header(self._files[0][0])
            if not self._header:
                if time.monotonic() - begin > timeout_s:
                    raise DataError(f"{self.path}: expected a first line with names of columns, none came in {timeout_s:g} s")
                time.sleep(_LOOK_S)
        return _parse_names(self._header, str(self.path))

    def look(self, position: int, most: int) -> Records:
        """Return the records from a position on that are there now, at most so many. Local.

        Raises:
            DataError: a file was shortened, taken away, or came too late for its name.
        """
        self._look_for_files()
        lines, following = self._read_lines(position, most, None)
        return Records(position, following, len(lines))

    def read(self, records: Records, first: int, last: int) -> list[tuple[str, bytes]]:
        """Return some of the records, each with the place that messages name. Local.

        Args:
            records: what another rank saw in the stream; waited for if need be.
            first, last: which of them, from 0.

        Raises:
            DataError: the file system does not show them.
        """
        begin = time.monotonic()
        while True:
            lines, _ = self._read_lines(records.position, last, records.following)
            if len(lines) >= last:
                return lines[first:last]
            if time.monotonic() - begin > _SHARED_FILE_S:
                raise DataError(
                    f"{self.path}: rank 0 found {records.count} records from byte {records.position} on, this rank only "
                    f"{len(lines)} after {_SHARED_FILE_S:g} s: put the stream where all nodes see it"
                )
            time.sleep(_LOOK_S)
            self._look_for_files()

    def is_ended(self) -> bool:
        """Return whether whoever writes has said that nothing more will come. Local."""
        if self._is_folder:
            return (self.path / END_FILE).exists()
        return Path(f"{self.path}{END_SUFFIX}").exists()

    def _look_for_files(self) -> None:
        """Take note of files that have come."""
        if not self._is_folder:
            self._files = [(self.path, 0)]
            return
        found = sorted(p for p in self.path.iterdir() if not p.name.startswith(".") and p.name != END_FILE and p.is_file())
        known = [path for path, _ in self._files]
        if found[: len(known)] != known:
            late = next((p for p in found if p not in known), None)
            gone = next((p for p in known if p not in found), None)
            what = f"{gone.name}, which was in use, is gone" if gone else f"{late.name if late else ''} came after {known[-1].name}"
            raise DataError(f"{self.path}: expected files that stay and whose names grow, but {what}: the order of records is lost")
        for path in found[len(known) :]:
            start = self._files[-1][1] + self._files[-1][0].stat().st_size if self._files else 0
            self._files.append((path, start))

    def _read_header(self, path: Path) -> bytes:
        with open(path, "rb") as file:
            line = file.readline(_BLOCK_NBYTES)
        if line.endswith(b"\n"):
            return line
        if len(line) >= _BLOCK_NBYTES or (self._is_folder and line):
            raise DataError(f"{path}: expected a first line with names of columns, found {len(line)} bytes without a newline")
        return b""

    def _read_lines(self, position: int, most: int, end: int | None) -> tuple[list[tuple[str, bytes]], int]:
        """Return up to `most` whole lines from a position on, before `end`, and the position behind them."""
        lines: list[tuple[str, bytes]] = []
        for number, (path, start) in enumerate(self._files):
            is_last = number == len(self._files) - 1
            stop = None if is_last else self._files[number + 1][1]
            if stop is not None and position >= stop:
                continue
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if position - start > size:
                    raise DataError(
                        f"{path}: expected {position - start} bytes or more, as many as were used, found {size}: it was cut"
                    )
                if position == start:
                    position = start + self._check_header(path)
                    if position == start:
                        break  # the first line is not complete yet
                file.seek(position - start)
                while len(lines) < most and (end is None or position < end):
                    line = file.readline(_BLOCK_NBYTES)
                    if not line.endswith(b"\n"):
                        if line and (self._is_folder or len(line) >= _BLOCK_NBYTES):
                            place = f"{path}, byte {position - start}"
                            raise DataError(f"{place}: expected a newline after {len(line)} bytes, found none")
                        break
                    if line.strip():
                        lines.append((f"{path}, byte {position - start}", line))
                    position += len(line)
            if len(lines) >= most:
                break
        return lines, position

    def _check_header(self, path: Path) -> int:
        header = self._read_header(path)
        if self._header and header and header.strip() != self._header.strip():
            raise DataError(f"{path}: expected the columns of the files before it, {_show(self._header)}, found {_show(header)}")
        return len(header)


@final
class Columns:
    """Turns records into inputs and labels.

    Args:
        names: of all columns.
        label_columns: those of the labels; empty: there are none.
        label_kind: what the labels are.
        num_classes: number of classes, for labels that are classes.

    Raises:
        DataError: a column of labels is missing, or there is none besides.
    """

    def __init__(self, names: Sequence[str], label_columns: Sequence[str], label_kind: LabelKind, num_classes: int) -> None:
        missing = [name for name in label_columns if name not in names]
        if missing:
            raise DataError(f"stream: expected a column {missing[0]!r}, found {', '.join(names)}: set data.label_column")
        self._labels = [names.index(name) for name in label_columns]
        self._inputs = [column for column in range(len(names)) if column not in self._labels]
        if not self._inputs:
            raise DataError("stream: expected columns of features besides the labels, found none")
        self._width, self._kind, self._num_classes = len(names), label_kind, num_classes

    @property
    def num_inputs(self) -> int:
        """Columns of features."""
        return len(self._inputs)

    def parse(self, lines: Sequence[tuple[str, bytes]]) -> tuple[NDArray[np.float64], NDArray[np.int64] | NDArray[np.float32]]:
        """Return inputs float64 [n, features] and labels of records: int64 [n], or float32 [n] or [n, columns]. Local.

        Raises:
            DataError: a cell is no finite number, a row is too short or long, or a label is no class; names the byte.
        """
        rows = np.empty((len(lines), self._width))
        for row, (place, line) in zip(rows, lines, strict=True):
            cells = line.split(b",")
            if len(cells) != self._width:
                raise DataError(f"{place}: expected {self._width} numbers, found {len(cells)} cells: {_show(line)}")
            try:
                row[:] = [float(cell) for cell in cells]
            except ValueError as error:
                raise DataError(f"{place}: expected numbers separated by commas, found {_show(line)}") from error
            if not np.isfinite(row).all():
                raise DataError(f"{place}: expected finite numbers, found {_show(line)}")
        labels = rows[:, self._labels]
        if self._kind != "class":
            values = labels.astype(np.float32)
            return rows[:, self._inputs], values[:, 0] if values.shape[1] == 1 else values
        outside = (labels != np.floor(labels)) | (labels < 0) | (labels >= self._num_classes)
        if outside.any():
            bad = int(np.argmax(outside.any(axis=1)))
            raise DataError(f"{lines[bad][0]}: expected a class from 0 to {self._num_classes - 1}, found {_show(lines[bad][1])}")
        return rows[:, self._inputs], labels[:, 0].astype(np.int64)


@collective("comm")
def await_records(
    comm: MPI.Intracomm, stream: RecordStream, position: int, most: int, idle_s: float, stop_requested: Callable[[], bool]
) -> Records | Literal["ended", "stopped"]:
    """Wait until a whole batch has come, the stream has ended, or somebody wants to stop.

    Collective over comm. Rank 0 looks, and all ranks go by what it found.

    Args:
        comm: all ranks.
        stream: rank 0's counts.
        position: where the batch begins.
        most: records of a batch; fewer come only at the end of the stream.
        idle_s: the stream has ended when nothing came for so long.
        stop_requested: whether this rank was told to stop.

    Raises:
        DataError: the stream cannot be read, on all ranks alike.
    """
    came, last_change = -1, time.monotonic()
    while True:
        round_ends = time.monotonic() + _ROUND_S

        def look(until: float = round_ends) -> tuple[Records, bool] | None:
            if comm.Get_rank() != 0:
                return None
            while True:
                ended = stream.is_ended()  # asked before looking: what was written before the end is seen
                found = stream.look(position, most)
                if found.count >= most or ended or time.monotonic() >= until:
                    return found, ended
                time.sleep(_LOOK_S)

        found, ended = comm.bcast(do_on_all(comm, look), root=0)
        if found.count >= most:
            return Records(found.position, found.following, found.count)
        now = time.monotonic()
        if found.following != came:
            came, last_change = found.following, now
        idle = bool(comm.bcast(now - last_change > idle_s, root=0))
        if ended or idle:
            return Records(found.position, found.following, found.count) if found.count else "ended"
        if comm.allreduce(bool(stop_requested()), op=MPI.LOR):
            return "stopped"


def start_spool(path: str) -> str:
    """Copy what comes out of a FIFO to a file beside it, for as long as the process lives, and return that file. Local, on rank 0.

    Whole lines that were copied before stay; a line that a writer left unfinished is ended where the last writer closes the
    FIFO. The stream ends where nobody writes any more and there is a file `<path>.end`.

    Raises:
        DataError: the file cannot be written.
    """
    spool = f"{path}{SPOOL_SUFFIX}"
    try:
        Path(f"{spool}{END_SUFFIX}").unlink(missing_ok=True)  # of an earlier start
        target = open(spool, "ab", buffering=0)  # noqa: SIM115 - the thread's, to the end of the process
    except OSError as error:
        raise DataError(f"{spool}: cannot be written, where the records of the FIFO are kept: {error.strerror}") from error
    threading.Thread(target=_copy, args=(path, cast(BinaryIO, target)), name="spool", daemon=True).start()
    return spool


def is_fifo(path: str) -> bool:
    """Return whether a path is a FIFO. Local."""
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except OSError:
        return False


def _copy(path: str, target: BinaryIO) -> None:
    source = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # else this would wait for a first writer, deaf to the end
    ends = True
    while True:
        is_over = Path(f"{path}{END_SUFFIX}").exists()  # asked before reading: what was written before the end is copied
        select.select([source], [], [], _ROUND_S)
        try:
            block = os.read(source, _BLOCK_NBYTES)
        except BlockingIOError:  # somebody writes, but nothing now
            continue
        if block:
            target.write(block)
            ends = block.endswith(b"\n")
            continue
        if not ends:
            target.write(b"\n")
            ends = True
        if is_over:
            Path(f"{path}{SPOOL_SUFFIX}{END_SUFFIX}").touch()
            return
        time.sleep(_LOOK_S)  # a writer may come, or come back


def _parse_names(header: bytes, path: str) -> list[str]:
    try:
        names = [name.strip() for name in header.decode("utf-8-sig").split(",")]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, line 1: expected UTF-8 text, found byte {header[error.start]:#04x}") from error
    if not all(names) or len(set(names)) < len(names):
        raise DataError(f"{path}, line 1: expected distinct names of columns, found {', '.join(map(repr, names))}")
    return names


def _show(line: bytes) -> str:
    text = line.decode(errors="replace").strip()
    return repr(text if len(text) <= 60 else f"{text[:60]}...")
