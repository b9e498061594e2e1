"""Comma-separated text: a line of column names, then one sample a line; loaded into memory.

Source: RFC 4180, in UTF-8.
"""

from __future__ import annotations

import csv
import math
import os
from array import array
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.data.dataset import ArrayDataset
from lepton_mpi.data.validation import MAX_LABEL, check_file, count_classes, suggest_format, wrong_label
from lepton_mpi.errors import DataError
from lepton_mpi.models.task import LabelKind

_MAX_VALUE = float(np.finfo(np.float32).max)


def open_csv(
    path: str, label_column: str, num_classes: int = 0, *, labels_required: bool = True, label_kind: LabelKind = "class"
) -> ArrayDataset:
    """Read a CSV file: the label column holds integers, all other columns are numeric features. Local.

    Cells may say nan or inf, except for labels: the check of the inputs names those samples later. Features stay
    integers where all of them are, so that ids are exact.

    Args:
        path: the file; its first line names the columns.
        label_column: name of the column of labels; for labels that are values, several names may be separated by commas.
        num_classes: number of classes; 0: one more than the largest label.
        labels_required: whether a file without the label column is an error; if not, it has no labels.
        label_kind: what the labels are; "none": their columns may be missing, and are left out where they are not.

    Raises:
        DataError: the file is missing or no UTF-8, a column is missing, unnamed or named twice,
            a row has too few or too many cells, a cell is no number, or a label is no class or not finite.
    """
    check_file(path)
    wanted = [label_column] if label_kind == "class" else [name.strip() for name in label_column.split(",")]
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = _read_rows(file, path)
        names = _read_names(rows, path)
        present = [name for name in wanted if name in names]
        if len(present) < len(wanted) and label_kind != "none" and (labels_required or present):
            missing = next(name for name in wanted if name not in names)
            raise DataError(f"{path}, line 1: expected a column {missing!r}, found {_shorten(names)}: set data.label_column")
        if len(names) == len(set(present)):
            raise DataError(f"{path}, line 1: expected columns of features, found {label_column!r} alone: add columns of numbers")
        columns = _Columns(names, [names.index(name) for name in present], label_kind, num_classes, path)
        features, labels = columns.read(rows)
    return ArrayDataset(os.path.basename(path), features, labels, count_classes(labels, num_classes))


def _read_rows(file: Iterator[str], path: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the last line of each row, and its cells; blank lines are left out."""
    reader = csv.reader(file, strict=True)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except UnicodeDecodeError as error:
        raise _undecodable(path) from error
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: expected comma-separated cells: {error}: mend the quotes") from error


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


class _Columns:
    """Which columns of a file are features and which are labels.

    Args:
        names: names of all columns.
        label_indices: columns of labels, in the order of the labels.
        label_kind: what the labels are.
        num_classes: number of classes; 0: any.
        path: the file, for messages.
    """

    def __init__(self, names: list[str], label_indices: list[int], label_kind: LabelKind, num_classes: int, path: str) -> None:
        self._names, self._path = names, path
        self._label_indices, self._kind, self._num_classes = label_indices, label_kind, num_classes
        self._dropped = sorted(set(label_indices), reverse=True)  # from the right, so that places on the left stay

    def read(self, rows: Iterator[tuple[int, list[str]]]) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Return features [N, columns] and labels: int64[N], float32[N] or [N, columns], or None. Local."""
        features, labels, num_rows = array("d"), array("d"), 0  # a class is at most 2^31, so exact
        for line, row in rows:
            if len(row) != len(self._names):
                raise DataError(
                    f"{self._path}, line {line}: expected {len(self._names)} cells, found {len(row)}: complete the row or remove it"
                )
            if self._kind != "none":
                labels.extend(self._read_label(line, index, row[index]) for index in self._label_indices)
            for index in self._dropped:
                del row[index]
            self._read_features(line, row, features)
            num_rows += 1
        if not num_rows:
            raise DataError(f"{self._path}: expected samples below the line of column names, found none: add rows of numbers")
        inputs = _narrow(np.frombuffer(features, np.float64)).reshape(num_rows, -1)
        if self._kind == "none" or not self._label_indices:
            return inputs, None
        if self._kind == "class":
            return inputs, np.frombuffer(labels, np.float64).astype(np.int64)
        values = np.frombuffer(labels, np.float64).astype(np.float32)
        return inputs, values if len(self._label_indices) == 1 else values.reshape(num_rows, -1)

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

    def _read_features(self, line: int, row: list[str], features: array[float]) -> None:
        try:
            features.extend(map(float, row))
            numeric = "_" not in ",".join(row)  # float() takes 1_000
        except ValueError:
            numeric = False
        if not numeric:
            names = [name for column, name in enumerate(self._names) if column not in self._dropped]
            name, cell = next((name, cell) for name, cell in zip(names, row, strict=True) if not _is_number(cell))
            raise DataError(f"{self._path}, line {line}, column {name!r}: expected a number, found {cell!r}: mend or drop the row")


def _narrow(values: NDArray[np.float64]) -> NDArray[Any]:
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
