"""HDF5 files: inputs and labels as named datasets; only the rows asked for are read.

Rows that lie in the file as they are, without compression, are read from a memory map: rows at random came five times faster than
through HDF5 where they lie in one piece, and forty times in chunks of 1 MiB (benchmarks/loading.py).
"""

from __future__ import annotations

import os
from types import EllipsisType
from typing import Any, final

import h5py
import numpy as np
from numpy.typing import NDArray

from lepton_mpi.data.dataset import Dataset, take_labels
from lepton_mpi.data.formats.hdf5_rows import find_plain_rows
from lepton_mpi.data.validation import check_file, check_inputs, count_classes, read_label_array, suggest_format
from lepton_mpi.errors import DataError
from lepton_mpi.models.task import LabelKind

# Up to this many rows of the file for a row asked for, one slice is read and thinned out in memory:
# HDF5 handles a list of rows one by one, at tens of microseconds each.
_SLICE_ROWS_PER_SAMPLE = 4


@final
class Hdf5Dataset(Dataset):
    """Samples in an HDF5 file that stays open for reading; the labels are in memory.

    Args:
        path: the file.
        inputs_name: path of the dataset of inputs in the file, [N, ...].
        labels_name: path of the dataset of labels, [N, ...].
        num_classes: number of classes; 0: one more than the largest label.
        labels_required: whether a file without labels is an error.
        label_kind: what the labels are; none are read for "none".

    Raises:
        DataError: the file is missing or damaged, lacks a dataset, leads elsewhere by a link, or
            the datasets do not fit.
    """

    def __init__(
        self,
        path: str,
        inputs_name: str,
        labels_name: str,
        num_classes: int = 0,
        *,
        labels_required: bool = True,
        label_kind: LabelKind = "class",
    ) -> None:
        check_file(path)
        try:
            file = h5py.File(path, "r")
        except OSError as error:
            raise DataError(f"{path}: expected an HDF5 file: {error}: {suggest_format(path, 'hdf5')}") from error
        self._place = f"{path}, dataset {inputs_name!r}"
        self._inputs = _find_dataset(file, path, inputs_name, "data.inputs_name")
        check_inputs(self._inputs.shape, self._inputs.dtype, self._place)
        self._plain = find_plain_rows(self._inputs, path)
        self._mapped = None if self._plain is None else np.asarray(np.memmap(path, np.uint8, "r"))
        shape = self._inputs.shape
        self._labels: NDArray[Any] | None = None
        if label_kind != "none" and (labels_required or labels_name in file):
            dataset, place = _find_dataset(file, path, labels_name, "data.labels_name"), f"{path}, dataset {labels_name!r}"
            labels = _read_rows(dataset, ..., place)
            self._labels = read_label_array(labels, label_kind, shape[0], num_classes, place)
        num_classes = count_classes(self._labels, num_classes)
        label_shape = () if self._labels is None else self._labels.shape[1:]
        found_kind: LabelKind = "none" if self._labels is None else label_kind
        super().__init__(os.path.basename(path), shape[0], shape[1:], num_classes, label_shape, found_kind)

    def read_raw(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """Return the inputs of samples in the file's dtype, [B, *input_shape]. Local.

        Raises:
            DataError: the file is damaged where the samples lie.
        """
        if not len(indices):
            return np.empty((0, *self.input_shape), self._inputs.dtype)
        if self._plain is not None and self._mapped is not None:
            plain: NDArray[Any] = self._plain.read(self._mapped, indices).view(self._inputs.dtype)
            return plain.reshape(len(indices), *self.input_shape)
        rows, inverse = np.unique(indices, return_inverse=True)  # HDF5 takes increasing rows only
        first, span = rows[0], rows[-1] - rows[0] + 1
        if span <= _SLICE_ROWS_PER_SAMPLE * len(rows):
            found, places = _read_rows(self._inputs, slice(first, first + span), self._place), indices - first
        else:
            found, places = _read_rows(self._inputs, rows, self._place), inverse
        taken: NDArray[Any] = np.take(found, places, axis=0)
        return taken

    def read_labels(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        return take_labels(self._labels, indices)


def _find_dataset(file: h5py.File, path: str, name: str, key: str) -> h5py.Dataset:
    """Return the dataset of a name, which must lie in the file itself.

    Links are refused: what they lead to may differ from rank to rank and is not covered by a
    copy of the file.
    """
    found: Any = file
    for part in name.strip("/").split("/"):
        names = ", ".join(found) if isinstance(found, h5py.Group) else ""
        if not isinstance(found, h5py.Group) or part in ("", ".") or part not in found.keys():  # noqa: SIM118
            raise DataError(f"{path}: expected a dataset {name!r}, found {names or 'none'} in {found.name!r}: set {key}")
        if not isinstance(found.get(part, getlink=True), h5py.HardLink):
            raise DataError(
                f"{path}: expected {name!r} in the file itself, found a link at {part!r}: store a copy (h5repack, h5copy)"
            )
        found = found[part]
    if not isinstance(found, h5py.Dataset):
        raise DataError(f"{path}: expected a dataset {name!r}, found a {type(found).__name__.lower()}: set {key}")
    if found.external is not None or found.is_virtual:
        raise DataError(f"{path}, dataset {name!r}: expected data in the file itself, found a reference to others: store a copy")
    if found.shape is None:
        raise DataError(f"{path}, dataset {name!r}: expected an array, found an empty dataset: write the data or set {key}")
    return found


def _read_rows(dataset: h5py.Dataset, rows: slice | EllipsisType | NDArray[np.int64], place: str) -> NDArray[Any]:
    try:
        return np.asarray(dataset[rows])
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{place}: rows cannot be read: {error}: the file is damaged or its filter missing, copy it again"
        ) from error
