"""CIFAR-10 and CIFAR-100 in their binary version, memory-mapped.

A record is one byte of label (CIFAR-100: coarse, then fine label) and 3072 bytes of image: 32 x 32 values of red, then as
many of green and of blue, row by row. A file is records alone, without a header.

Source: Krizhevsky, "Learning multiple layers of features from tiny images", 2009; the layout is that of the page
"The CIFAR-10 dataset", section "Binary version".
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.data.dataset import Dataset, take_labels
from lepton_mpi.data.validation import check_file, list_folder, suggest_format, wrong_label
from lepton_mpi.errors import DataError
from lepton_mpi.models.task import LabelKind

_IMAGE_SHAPE = (3, 32, 32)
_IMAGE_NBYTES = 3072


@final
@dataclass(frozen=True)
class _Layout:
    """What the files of one of the two data sets are like."""

    num_classes: int
    label_nbytes: int  # bytes of labels before an image; the last of them is used
    train_prefix: str
    test_name: str


_LAYOUTS = {
    "cifar10": _Layout(10, 1, "data_batch", "test_batch.bin"),
    "cifar100": _Layout(100, 2, "train", "test.bin"),
}


@final
class CifarDataset(Dataset):
    """Images [3, 32, 32] in one or several files of records; the labels are in memory.

    Args:
        name: "cifar10" or "cifar100".
        path: a file of records, or a folder that holds the files of the training set.
        num_classes: number of classes; 0: 10 or 100.
        label_kind: what labels are read as: classes (CIFAR-100: the fine ones), their numbers as values, or not at all.

    Raises:
        DataError: a file is missing, holds no whole number of records, or a label that is no class.
    """

    def __init__(self, name: str, path: str, num_classes: int = 0, *, label_kind: LabelKind = "class") -> None:
        layout = _LAYOUTS[name]
        num_classes = num_classes or layout.num_classes
        files = _training_files(path, name) if os.path.isdir(path) else [path]
        self._records = [_map_records(file, name, layout.label_nbytes) for file in files]
        self._image_start = layout.label_nbytes
        self._starts = np.cumsum([0, *(len(records) for records in self._records)])
        labels = []
        for file, records in zip(files, self._records, strict=True):
            found = np.array(records[:, layout.label_nbytes - 1])
            if label_kind != "none":
                _check_labels(file, found, num_classes, layout.label_nbytes)
            labels.append(found)
        self._labels: NDArray[Any] | None = None
        if label_kind != "none":
            self._labels = np.concatenate(labels).astype(np.float32 if label_kind == "value" else np.uint8)
        name = os.path.basename(os.path.normpath(path))
        super().__init__(name, int(self._starts[-1]), _IMAGE_SHAPE, num_classes, (), label_kind)

    def read_raw(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return images as the files hold them, uint8[B, 3, 32, 32]. Local."""
        images = np.empty((len(indices), _IMAGE_NBYTES), np.uint8)
        numbers = np.searchsorted(self._starts, indices, side="right") - 1
        for number in np.unique(numbers):
            rows = np.flatnonzero(numbers == number)
            images[rows] = self._records[number][indices[rows] - self._starts[number], self._image_start :]
        return images.reshape(-1, *_IMAGE_SHAPE)

    def read_labels(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        return take_labels(self._labels, indices)


def find_cifar_test_file(name: str, path: str) -> str:
    """Return the file of the test set in a folder; empty: it has none, or is no folder. Local."""
    found = os.path.join(path, _LAYOUTS[name].test_name)
    return found if os.path.isfile(found) else ""


def _is_training_file(file: str, layout: _Layout) -> bool:
    return file.startswith(layout.train_prefix) and file.endswith(".bin")


def _training_files(folder: str, name: str) -> list[str]:
    layout = _LAYOUTS[name]
    files = [file for file in list_folder(folder) if _is_training_file(file, layout)]
    if not files:
        raise DataError(
            f"{folder}: expected files {layout.train_prefix}*.bin of {name} in its binary version, found none: check data.path"
        )
    return [os.path.join(folder, file) for file in files]


def _map_records(path: str, name: str, label_nbytes: int) -> NDArray[np.uint8]:
    """Return the records of a file, memory-mapped, uint8[N, record]."""
    file_nbytes, record_nbytes = check_file(path), label_nbytes + _IMAGE_NBYTES
    whole, rest = divmod(file_nbytes, record_nbytes)
    if rest:
        raise DataError(
            f"{path}, offset {whole * record_nbytes}: expected {name} records of {record_nbytes} bytes, found {rest} bytes after "
            f"{whole} of them: the file is cut short or no {name}; {suggest_format(path, name)}"
        )
    return np.asarray(np.memmap(path, np.uint8, mode="r", shape=(whole, record_nbytes)))


def _check_labels(path: str, labels: NDArray[np.uint8], num_classes: int, label_nbytes: int) -> None:
    wrong = np.flatnonzero(labels >= num_classes)
    if wrong.size:
        offset = int(wrong[0]) * (label_nbytes + _IMAGE_NBYTES) + label_nbytes - 1
        raise wrong_label(f"{path}, offset {offset}", str(labels[wrong[0]]), num_classes)
