"""Comma-separated text: a line of column names, then one sample a line.

`CsvReader` reads a file of any size in chunks; `open_csv` puts all of them into memory.

Source: RFC 4180, in UTF-8.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import IO, Any, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.data.dataset import ArrayDataset
from lepton_mpi.data.formats.delimited import LineBlock, count_lines, parse_numbers, read_blocks
from lepton_mpi.data.validation import MAX_LABEL, check_file, count_classes, suggest_format, wrong_label
from lepton_mpi.errors import DataError
from lepton_mpi.models.task import LabelKind

_MAX_VALUE = float(np.finfo(np.float32).max)
_CHUNK_ROWS = 1 << 14  # rows of a chunk where cells are read one by one


def open_csv(
    path: str, label_column: str, num_classes: int = 0, *, labels_required: bool = True, label_kind: LabelKind = "class"
) -> ArrayDataset:
    """Read a CSV file into memory: the label column holds integers, all other columns are numeric features. Local.

    Cells may say nan or inf, except for labels: the check of the inputs names those samples later. Features stay
    integers where all of them are, so that ids are exact.

    Args and errors are those of `CsvReader` and its `chunks`.
    """
    reader = CsvReader(path, label_column, num_classes, labels_required=labels_required, label_kind=label_kind)
    features: list[NDArray[Any]] = []
    labels: list[NDArray[Any]] = []
    for chunk, answers in reader.chunks():
        features.append(narrow_numbers(chunk))
        labels += [] if answers is None else [answers]
    # A chunk of integers beside one of fractions becomes float32, rounded once, as if all had been seen together.
    dtype = max((part.dtype.name for part in features), key=lambda name: ("int32", "int64", "float32").index(name))
    inputs = np.concatenate([part.astype(dtype, copy=False) for part in features])
    found = np.concatenate(labels) if labels else None
    return ArrayDataset(os.path.basename(path), inputs, found, count_classes(found, num_classes))


@final
class CsvReader:
    """A CSV file, read in chunks that take little memory.

    Args:
        path: the file; its first line names the columns.
        label_column: name of the column of labels; for labels that are values, several names may be separated by commas.
        num_classes: number of classes; 0: any.
        labels_required: whether a file without the label column is an error; if not, it has no labels.
        label_kind: what the labels are; "none": their columns may be missing, and are left out where they are not.

    Attributes:
        feature_names: names of the columns of features, in the order of the file.
        num_labels: columns of labels that are read; 0: there are none.

    Raises:
        DataError: the file is missing or no UTF-8, or a column is missing, unnamed or named twice.
    """

    def __init__(
        self,
        path: str,
        label_column: str,
        num_classes: int = 0,
        *,
        labels_required: bool = True,
        label_kind: LabelKind = "class",
    ) -> None:
        check_file(path)
        self._path, self._kind, self._num_classes = path, label_kind, num_classes
        wanted = [label_column] if label_kind == "class" else [name.strip() for name in label_column.split(",")]
        with open(path, "rb") as file:
            self._names, _ = _read_header(next(read_blocks(file)), path)
        names = self._names
        present = [name for name in wanted if name in names]
        if len(present) < len(wanted) and label_kind != "none" and (labels_required or present):
            missing = next(name for name in wanted if name not in names)
            raise DataError(f"{path}, line 1: expected a column {missing!r}, found {_shorten(names)}: set data.label_column")
        if len(names) == len(set(present)):
            raise DataError(f"{path}, line 1: expected columns of features, found {label_column!r} alone: add columns of numbers")
        self._label_indices = [names.index(name) for name in present]
        self._feature_indices = [index for index in range(len(names)) if index not in self._label_indices]
        self.feature_names = [names[index] for index in self._feature_indices]
        self.num_labels = 0 if label_kind == "none" else len(present)

    def chunks(self) -> Iterator[tuple[NDArray[np.float64], NDArray[Any] | None]]:
        """Yield the rows of the file from its start, some thousands at a time. Local.

        Yields:
            Features float64[n, features], and labels: int64[n] for classes, float32[n] or [n, num_labels] for values,
            None where there are none. n is at least 1.

        Raises:
            DataError: the file is no UTF-8 or has no rows, a row has too few or too many cells, a cell is no number,
                or a label is no class or not finite.
        """
        empty = True
        with open(self._path, "rb") as file:
            for values in self._read_tables(file):
                empty = False
                yield self._divide(values)
        if empty:
            raise DataError(f"{self._path}: expected samples below the line of column names, found none: add rows of numbers")

    def _read_tables(self, file: IO[bytes]) -> Iterator[NDArray[np.float64]]:
        """Yield all cells, float64[n, columns]."""
        blocks = read_blocks(file)
        first = _read_header(next(blocks), self._path)[1]
        for block in itertools.chain([first], blocks):
            if b'"' in block.content:  # a quoted cell may hold a newline, and so the end of the block
                file.seek(block.offset)
                yield from self._read_cells(io.TextIOWrapper(file, encoding="utf-8", newline=""), block.line)
                return
            values = parse_numbers(block.content, len(self._names))
            if values is not None and self._are_labels(values):
                yield values
            else:
                text = _decode(block.content, self._path)
                yield from self._read_cells(io.StringIO(text, newline=""), block.line)

    def _divide(self, values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[Any] | None]:
        """Return features and labels of rows of cells."""
        features = np.take(values, self._feature_indices, axis=1)
        if not self.num_labels:
            return features, None
        labels = np.take(values, self._label_indices, axis=1)
        if self._kind == "class":
            return features, labels[:, 0].astype(np.int64)
        return features, labels.astype(np.float32).reshape((-1,) if self.num_labels == 1 else labels.shape)

    def _are_labels(self, values: NDArray[np.float64]) -> bool:
        """Return whether the labels of rows are good; which one is not, the reader of cells finds."""
        if not self.num_labels:
            return True
        labels = values[:, self._label_indices]
        if self._kind == "value":
            return bool((np.abs(labels) <= _MAX_VALUE).all())
        largest = self._num_classes - 1 if self._num_classes else MAX_LABEL
        return bool(((labels >= 0) & (labels <= largest) & (labels == np.floor(labels))).all())

    def _read_cells(self, lines: Iterable[str], first_line: int) -> Iterator[NDArray[np.float64]]:
        """Yield rows of cells that are read one by one, float64[n, columns], with every rule of the format."""
        rows = _read_rows(lines, self._path, first_line)
        while some := [self._read_row(line, row) for line, row in itertools.islice(rows, _CHUNK_ROWS)]:
            yield np.array(some, np.float64)

    def _read_row(self, line: int, row: list[str]) -> list[float]:
        if len(row) != len(self._names):
            raise DataError(
                f"{self._path}, line {line}: expected {len(self._names)} cells, found {len(row)}: complete the row or remove it"
            )
        values = [0.0] * len(row)
        for index in self._label_indices if self.num_labels else ():
            values[index] = self._read_label(line, index, row[index])
        for index in self._feature_indices:
            if not _is_number(row[index]):
                raise DataError(
                    f"{self._path}, line {line}, column {self._names[index]!r}: expected a number, found {row[index]!r}: "
                    "mend or drop the row"
                )
            values[index] = float(row[index])
        return values

    def _read_label(self, line: int, index: int, cell: str) -> float:
        place = f"{self._path}, line {line}, column {self._names[index]!r}"
        if self._kind == "class":
            label = _parse_label(cell, self._num_classes)
            if label < 0:
                raise wrong_label(place, cell, self._num_classes)
            return label
        value = float(cell) if _is_number(cell) else math.nan
        if not abs(value) <= _MAX_VALUE:
            raise DataError(f"{place}: expected a finite label, found {cell!r}: mend or drop the row")
        return value


def _read_header(block: LineBlock, path: str) -> tuple[list[str], LineBlock]:
    """Return the column names that the first block starts with, and what of it comes after."""
    text = io.StringIO(_decode(block.content, path).removeprefix("\ufeff"), newline="")
    rows = _read_rows(text, path, 1)
    names, rest = _read_names(rows, path), text.read().encode()
    num_read = len(block.content) - len(rest)
    return names, LineBlock(rest, num_read, 1 + count_lines(block.content[:num_read]))


def _decode(content: bytes, path: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise _undecodable(path) from error


def _read_rows(lines: Iterable[str], path: str, first_line: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the last line of each row, and its cells; blank lines are left out."""
    reader = csv.reader(lines, strict=True)
    before = first_line - 1
    try:
        for row in reader:
            if row:
                yield before + reader.line_num, row
    except UnicodeDecodeError as error:
        raise _undecodable(path) from error
    except csv.Error as error:
        line = before + reader.line_num
        raise DataError(f"{path}, line {line}: expected comma-separated cells: {error}: mend the quotes") from error


def _undecodable(path: str) -> DataError:
    """Return the error that names the first byte of a file that is no UTF-8."""
    with open(path, "rb") as file:
        for line, content in enumerate(file, 1):  # no character but the newline contains its byte
            try:
                content.decode()
            except UnicodeDecodeError as error:
                found = f"byte {content[error.start]:#04x} as byte {error.start + 1} of the line"
                return DataError(f"{path}, line {line}: expected UTF-8 text, found {found}: {suggest_format(path, 'csv')}")
    return DataError(f"{path}: expected UTF-8 text, and it changed while it was read: wait until it is written, then start again")


def _read_names(rows: Iterator[tuple[int, list[str]]], path: str) -> list[str]:
    line, names = next(rows, (1, []))
    names = [name.strip() for name in names]
    # Plain numbering, as pandas writes for columns without names, is the only header that may look like data.
    if not names or (all(map(_is_number, names)) and names != [str(column) for column in range(len(names))]):
        raise DataError(f"{path}, line {line}: expected column names, found {_shorten(names)}: add a line of names")
    for column, name in enumerate(names, 1):
        if not name:
            raise DataError(
                f"{path}, line {line}, column {column}: expected a column name, found an empty cell: name the column, "
                "or drop it if it only numbers the rows"
            )
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f"{path}, line {line}: expected distinct column names, found {_shorten(repeated)} repeatedly: rename them")
    return names


def narrow_numbers(values: NDArray[np.float64]) -> NDArray[Any]:
    """Return numbers as int32 or int64 where all are integers, as ids are, else as float32."""
    if np.array_equal(values, np.floor(values)) and np.abs(values).max() < 2.0**53:
        return values.astype(np.int32 if np.abs(values).max() < 2.0**31 else np.int64)
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _parse_label(cell: str, num_classes: int) -> int:
    """Return the label, or -1 if it is none."""
    value = float(cell) if _is_number(cell) else -1.0
    largest = num_classes - 1 if num_classes else MAX_LABEL
    return int(value) if 0 <= value <= largest and value.is_integer() else -1


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def _shorten(names: list[str]) -> str:
    """Return some names for a message; a file may have thousands."""
    return ", ".join(repr(name) for name in names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "no column"
