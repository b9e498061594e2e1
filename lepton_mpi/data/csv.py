"""Comma-separated text: a line of column names, then one sample a line; loaded into memory.

Source: RFC 4180, in UTF-8.
"""

from __future__ import annotations

import csv
import os
from array import array
from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.data.dataset import ArrayDataset
from lepton_mpi.data.validation import MAX_LABEL, check_file, count_classes, suggest_format, wrong_label
from lepton_mpi.errors import DataError


def open_csv(path: str, label_column: str, num_classes: int = 0, *, labels_required: bool = True) -> ArrayDataset:
    """Read a CSV file: the label column holds integers, all other columns are numeric features. Local.

    Cells may say nan or inf, except for labels: the check of the inputs names those samples later.

    Args:
        path: the file; its first line names the columns.
        label_column: name of the column of labels.
        num_classes: number of classes; 0: one more than the largest label.
        labels_required: whether a file without the label column is an error; if not, it has no labels.

    Raises:
        DataError: the file is missing or no UTF-8, a column is missing, unnamed or named twice,
            a row has too few or too many cells, a cell is no number, or a label is no class.
    """
    check_file(path)
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = _read_rows(file, path)
        names = _read_names(rows, path)
        if label_column not in names and labels_required:
            raise DataError(f"{path}, line 1: expected a column {label_column!r}, found {_shorten(names)}: set data.label_column")
        label_index = names.index(label_column) if label_column in names else None
        if len(names) == (label_index is not None):
            raise DataError(f"{path}, line 1: expected columns of features, found {label_column!r} alone: add columns of numbers")
        features, labels = _read_samples(rows, names, label_index, num_classes, path)
    inputs = np.frombuffer(features, np.float32).reshape(len(labels), -1)
    if label_index is None:
        return ArrayDataset(os.path.basename(path), inputs, None, 0)
    checked: NDArray[np.int64] = np.frombuffer(labels, np.int64)
    return ArrayDataset(os.path.basename(path), inputs, checked, count_classes(checked, num_classes))


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


def _read_samples(
    rows: Iterator[tuple[int, list[str]]], names: list[str], label_index: int | None, num_classes: int, path: str
) -> tuple[array[float], array[int]]:
    """Return all features (float32, row after row) and labels (int64; zeros without a label column)."""
    features, labels = array("f"), array("q")
    for line, row in rows:
        if len(row) != len(names):
            raise DataError(f"{path}, line {line}: expected {len(names)} cells, found {len(row)}: complete the row or remove it")
        label = 0
        if label_index is not None:
            cell = row.pop(label_index)
            label = _parse_label(cell, num_classes)
            if label < 0:
                raise wrong_label(f"{path}, line {line}, column {names[label_index]!r}", cell, num_classes)
        labels.append(label)
        try:
            features.extend(map(float, row))
            numeric = "_" not in ",".join(row)  # float() takes 1_000
        except ValueError:
            numeric = False
        if not numeric:
            columns = [name for column, name in enumerate(names) if column != label_index]
            name, cell = next((name, cell) for name, cell in zip(columns, row, strict=True) if not _is_number(cell))
            raise DataError(f"{path}, line {line}, column {name!r}: expected a number, found {cell!r}: mend or drop the row")
    if not labels:
        raise DataError(f"{path}: expected samples below the line of column names, found none: add rows of numbers")
    return features, labels


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
