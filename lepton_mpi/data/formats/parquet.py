"""Apache Parquet tables: columns of numbers, read by row groups.

Source: Apache Parquet, "File Format"; read by pyarrow, an extra of the package.

In memory are the labels and the row groups used last. A row group is decoded as a whole, so that samples in random order
from a file of many large ones are read slowly; such a file is better converted.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.data.dataset import Dataset, take_labels
from lepton_mpi.data.validation import check_file, count_classes, read_label_array, suggest_format
from lepton_mpi.errors import ConfigError, DataError
from lepton_mpi.models.task import LabelKind

_CACHE_NBYTES = 64 << 20  # of decoded row groups; the last one stays whatever its size


@final
class ParquetDataset(Dataset):
    """Rows of a Parquet file: the label columns, and all others, which are numeric features.

    Features are in the type that holds all their columns: integers where all are integers, so that ids are exact.

    Args:
        path: the file.
        label_column: name of the column of labels; for labels that are values, several names may be separated by commas.
        num_classes: number of classes; 0: one more than the largest label.
        labels_required: whether a file without the label column is an error; if not, it has no labels.
        label_kind: what the labels are; "none": their columns may be missing, and are left out where they are not.

    Raises:
        ConfigError: pyarrow is not installed.
        DataError: the file is missing or damaged, has no rows, a column is missing or not numeric, or a label is no
            class or not finite.
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
        self._path, parquet = path, _import_parquet()
        try:
            self._file = parquet.ParquetFile(path, memory_map=True)
            names, types = list(self._file.schema_arrow.names), list(self._file.schema_arrow.types)
            groups = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
        except Exception as error:  # pyarrow raises many types on damaged bytes
            raise DataError(f"{path}: expected a Parquet file: {error}: {suggest_format(path, 'parquet')}") from error
        wanted = [label_column] if label_kind == "class" else [name.strip() for name in label_column.split(",")]
        self._label_names = _present_labels(path, names, wanted, label_kind, labels_required)
        self._starts = np.cumsum([0, *groups])
        if min(groups, default=0) < 0 or self._starts[-1] < 1:
            raise DataError(f"{path}: expected rows, found none: write the table again")
        self._feature_names = [name for name in names if name not in self._label_names]
        self._dtype = _common_dtype(path, dict(zip(names, types, strict=True)), self._feature_names)
        self._cache: OrderedDict[int, NDArray[Any]] = OrderedDict()
        labels = None
        if label_kind != "none" and self._label_names:
            columns = [self._read_columns(group, self._label_names, None) for group in range(len(groups))]
            found = np.concatenate(columns)
            found = found[:, 0] if len(self._label_names) == 1 else found
            labels = read_label_array(found, label_kind, len(found), num_classes, f"{path}, column {label_column!r}")
        self._labels = labels
        shape = () if labels is None else labels.shape[1:]
        kind: LabelKind = "none" if labels is None else label_kind
        num_classes = count_classes(labels, num_classes)
        super().__init__(os.path.basename(path), int(self._starts[-1]), (len(self._feature_names),), num_classes, shape, kind)

    def read_raw(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """Return features, [B, features]. Local.

        Raises:
            DataError: the file is damaged where the samples lie, or a cell is empty.
        """
        rows = np.empty((len(indices), len(self._feature_names)), self._dtype)
        groups = np.searchsorted(self._starts, indices, side="right") - 1
        for group in np.unique(groups):
            places = np.flatnonzero(groups == group)
            rows[places] = self._read_group(int(group))[indices[places] - self._starts[group]]
        return rows

    def read_labels(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        return take_labels(self._labels, indices)

    def _read_group(self, group: int) -> NDArray[Any]:
        if group not in self._cache:
            self._cache[group] = self._read_columns(group, self._feature_names, self._dtype)
            while len(self._cache) > 1 and sum(part.nbytes for part in self._cache.values()) > _CACHE_NBYTES:
                self._cache.popitem(last=False)
        self._cache.move_to_end(group)
        return self._cache[group]

    def _read_columns(self, group: int, names: list[str], dtype: np.dtype[Any] | None) -> NDArray[Any]:
        """Return columns of a row group, [rows, columns]; dtype None: one that holds them all."""
        place = f"{self._path}, row group {group}"
        try:
            table = self._file.read_row_group(group, columns=names, use_threads=False)
            # By number: a damaged file may come with other names than its schema promised.
            empty = [name for number, name in enumerate(names) if table.column(number).null_count]
            columns = [] if empty else [table.column(number).to_numpy() for number in range(len(names))]
        except Exception as error:  # pyarrow raises many types on damaged bytes
            raise DataError(f"{place}: cannot be read: {error}: the file is damaged, copy it again") from error
        if empty:
            raise DataError(f"{place}, column {empty[0]!r}: expected a number in each row, found empty cells: fill or drop them")
        num_rows = int(self._starts[group + 1] - self._starts[group])
        if any(len(column) != num_rows for column in columns):
            raise DataError(f"{place}: expected {num_rows} rows, found another number: the file is damaged, copy it again")
        with np.errstate(over="ignore"):
            return np.stack(columns, axis=1).astype(dtype or np.result_type(*columns), copy=False)


def _present_labels(path: str, names: list[str], wanted: list[str], label_kind: LabelKind, required: bool) -> list[str]:
    """Return which of the wanted columns there are, if that is enough."""
    if len(set(names)) < len(names):
        raise DataError(f"{path}: expected distinct column names, found some repeatedly: rename them")
    present = [name for name in wanted if name in names]
    if len(present) < len(wanted) and label_kind != "none" and (required or present):
        missing, shown = next(name for name in wanted if name not in names), ", ".join(map(repr, names[:8])) or "no column"
        raise DataError(f"{path}: expected a column {missing!r}, found {shown}: set data.label_column")
    if len(present) == len(names):
        raise DataError(f"{path}: expected columns of features, found {', '.join(wanted)} alone: add columns of numbers")
    return present


def _common_dtype(path: str, types: dict[str, Any], names: list[str]) -> np.dtype[Any]:
    """Return the type that holds all columns of features."""
    dtypes = []
    for name in names:
        try:
            dtype = np.dtype(types[name].to_pandas_dtype())
        except (NotImplementedError, TypeError):
            dtype = np.dtype(object)
        if dtype.kind not in "biuf":
            raise DataError(
                f"{path}, column {name!r}: expected numbers, found {types[name]}: drop the column or number what it says"
            )
        dtypes.append(dtype)
    return np.result_type(*dtypes)


def _import_parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError("data.format: parquet needs pyarrow, which is not installed: pip install lepton_mpi[parquet]") from error
    return pyarrow.parquet
