"""MovieLens ratings: ratings.csv of the newer sets, ratings.dat of the older ones, u.data of the oldest.

A line is a rating: user, movie, rating and time, separated by `,`, `::` or a tab; ratings.csv starts with a line of
names. Users and movies are numbered from 0 in the order of their original ids, without gaps. In memory are 12 bytes a
rating.

Source: Harper and Konstan, "The MovieLens datasets: history and context", ACM TiiS 5 (4), 2015, and the README files of
the sets.
"""

from __future__ import annotations

import os
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.data.dataset import ArrayDataset
from lepton_mpi.data.formats.delimited import LineBlock, parse_numbers, read_blocks
from lepton_mpi.data.validation import check_file, count_classes, read_label_array, suggest_format
from lepton_mpi.errors import DataError
from lepton_mpi.models.task import LabelKind

_FILES = ("ratings.csv", "ratings.dat", "u.data")
_HEADER = b"userId,movieId,rating,timestamp"
_NUM_COLUMNS = 4
_LARGEST_ID = 2.0**53 - 1  # up to here a double holds every integer
_COLUMN_NAMES = ("user", "movie", "rating", "time")


def open_movielens(path: str, num_classes: int = 0, *, numbering_path: str = "", label_kind: LabelKind = "value") -> ArrayDataset:
    """Read ratings: inputs are pairs of user and movie, int32[N, 2], labels the ratings. Local.

    Args:
        path: the file, or a folder that holds it.
        num_classes: number of classes, where labels are read as classes; 0: one more than the largest.
        numbering_path: file or folder of ratings whose ids are numbered; empty: `path`. A test set needs that of its
            training set, so that a number means the same user in both.
        label_kind: what ratings are read as: values, classes (whole stars only), or not at all.

    Raises:
        DataError: a file is missing or malformed, or holds an id that is not in `numbering_path`.
    """
    path = find_ratings(path)
    table = _read_table(path)
    known = (
        table if not numbering_path or _is_same(path, find_ratings(numbering_path)) else _read_table(find_ratings(numbering_path))
    )
    columns = [_number(table, column, known.values[:, column]) for column in (0, 1)]
    labels = read_label_array(table.values[:, 2], label_kind, len(table.values), num_classes, path)
    if labels is not None and label_kind == "value":
        labels = labels.astype(np.float32)
    inputs = np.stack(columns, axis=1).astype(np.int32)
    return ArrayDataset(os.path.basename(path), inputs, labels, count_classes(labels, num_classes))


def find_ratings(path: str) -> str:
    """Return the file of ratings that a path stands for. Local.

    Raises:
        DataError: a folder holds none.
    """
    if not os.path.isdir(path):
        return path
    for name in _FILES:
        if os.path.isfile(os.path.join(path, name)):
            return os.path.join(path, name)
    raise DataError(f"{path}: expected a folder with {', '.join(_FILES)}, found none of them: check data.path")


@final
class _Table:
    """Ratings as they stand in a file.

    Attributes:
        path: the file.
        values: float64[N, 3], user, movie, rating.
        first_line: number of the line of the first rating.
    """

    def __init__(self, path: str, values: NDArray[np.float64], first_line: int) -> None:
        self.path, self.values, self.first_line = path, values, first_line


def _is_same(path: str, other: str) -> bool:
    return os.path.realpath(path) == os.path.realpath(other)


def _read_table(path: str) -> _Table:
    check_file(path)
    parts, first_line, separator = [], 1, b","
    with open(path, "rb") as file:
        for block in read_blocks(file):
            content = block.content
            if block.offset == 0:
                content = content.removeprefix(b"\xef\xbb\xbf")
                separator = _find_separator(content, path)
                if content.startswith(_HEADER):
                    line, _, content = content.partition(b"\n")
                    if line.rstrip(b"\r") != _HEADER:
                        raise DataError(f"{path}, line 1: expected {_HEADER.decode()!r}, found {line[:60]!r}: name the columns so")
                    first_line = 2
            block = LineBlock(content, block.offset, max(block.line, first_line))
            if content:
                parts.append(_parse_block(block, separator, path))
    if not parts:
        raise DataError(f"{path}: expected ratings below the line of names, found none: copy the file again")
    return _Table(path, np.concatenate(parts), first_line)


def _find_separator(content: bytes, path: str) -> bytes:
    line = content.partition(b"\n")[0]
    for separator in (b"::", b"\t", b","):
        if line.count(separator) == _NUM_COLUMNS - 1:
            return separator
    raise DataError(
        f"{path}, line 1: expected user, movie, rating and time, separated by a comma, a tab or '::', found {line[:60]!r}: "
        f"{suggest_format(path, 'movielens')}"
    )


def _parse_block(block: LineBlock, separator: bytes, path: str) -> NDArray[np.float64]:
    content = block.content.replace(b"\r\n", b"\n")
    if separator != b",":
        content = content.replace(b",", b";").replace(separator, b",")  # a comma between other separators is no separator
    values = parse_numbers(content, _NUM_COLUMNS)
    if values is None or not _are_ratings(values).all():
        raise _wrong_line(content, block.line, path)
    return values[:, :3].copy()


def _are_ratings(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return for each row whether users, movies and ratings may be what they are."""
    ids = values[:, :2]
    good_ids = ((ids >= 0) & (ids <= _LARGEST_ID) & (ids == np.floor(ids))).all(axis=1)
    good: NDArray[np.bool_] = good_ids & (np.abs(values[:, 2]) <= np.finfo(np.float32).max)
    return good


def _wrong_line(content: bytes, first_line: int, path: str) -> DataError:
    """Return the error that names the first bad line of a block that has one."""
    lines = enumerate(content.split(b"\n"), first_line)
    line, text = next((line, text) for line, text in lines if not _is_rating(text))
    return DataError(
        f"{path}, line {line}: expected {', '.join(_COLUMN_NAMES)}, whole ids from 0 and finite numbers, found "
        f"{text[:60].decode('utf-8', 'replace')!r}: mend or drop the line"
    )


def _is_rating(line: bytes) -> bool:
    values = parse_numbers(line, _NUM_COLUMNS)
    return values is not None and bool(_are_ratings(values)[0])


def _number(table: _Table, column: int, known: NDArray[np.float64]) -> NDArray[Any]:
    """Return the place of each id of a column among the sorted known ids."""
    ids = np.unique(known)
    places = np.searchsorted(ids, table.values[:, column])
    missing = np.flatnonzero(ids[np.minimum(places, len(ids) - 1)] != table.values[:, column])
    if missing.size:
        found = int(table.values[missing[0], column])
        raise DataError(
            f"{table.path}, line {table.first_line + missing[0]}: expected a {_COLUMN_NAMES[column]} of the training file, found "
            f"{found}: nothing was learnt about it; drop the line"
        )
    return places
