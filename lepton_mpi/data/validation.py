"""Checks that all formats share: the file, the array of inputs, the array of labels."""

from __future__ import annotations

import math
import os
import stat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.errors import DataError
from lepton_mpi.models.task import LabelKind

_REAL_KINDS = "biuf"  # NumPy dtype kinds: bool, signed, unsigned, floating point
_SCAN_ELEMENTS = 1 << 22  # elements checked at a time, so that a check of a large file takes little memory
MAX_LABEL = 2**31 - 1  # a larger one is a mistake in the file, not a class
_MAGIC_NUMBERS = (
    (b"\x93NUMPY", "npy"),
    (b"PK\x03\x04", "npz"),
    (b"\x89HDF\r\n\x1a\n", "hdf5"),
    (b"PAR1", "parquet"),
    (b"\x1f\x8b", "idx"),  # gzip, which only idx accepts
    *((bytes([0, 0, code]), "idx") for code in (0x08, 0x09, 0x0B, 0x0C, 0x0D, 0x0E)),
)
_SUFFIXES = {
    ".npy": "npy",
    ".npz": "npz",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".csv": "csv",
    ".gz": "idx",
    ".parquet": "parquet",
    ".tar": "webdataset",
}
_TAR_MAGIC, _TAR_MAGIC_OFFSET = b"ustar", 257  # POSIX.1-2001, pax
# Names of MovieLens, and how the first line of those files that others may be called after starts.
_RATINGS_FILES = {"ratings.csv": b"userId,movieId,rating,timestamp", "ratings.dat": b"", "u.data": b""}
_CIFAR_TEST_FILES = {"test_batch.bin": "cifar10", "test.bin": "cifar100"}
_CIFAR_TRAINING_FILES = {"cifar10": "data_batch_1.bin", "cifar100": "train.bin"}


def check_file(path: str) -> int:
    """Return the size of a readable, regular, non-empty file in bytes. Local.

    Raises:
        DataError: it is missing, no regular file, unreadable, or empty.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # asked before open(), which would wait for ever on a pipe
            raise DataError(f"{path}: expected a data file, found a folder or device: give the path of a file")
        with open(path, "rb"):
            pass
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"{path!r}: expected a readable data file: {reason}. Check data.path, the name and the permissions"
        ) from error
    if status.st_size == 0:
        raise DataError(f"{path}: expected data, found an empty file (0 bytes): copy or make the file again")
    return status.st_size


def guess_format(path: str) -> str | None:
    """Return the `data.format` that a file's first bytes or, failing them, its name tell; None: neither does. Local.

    A folder is told from the names in it: files of CIFAR or MovieLens, tar archives.
    """
    if os.path.isdir(path):
        return _guess_folder(path)
    with open(path, "rb") as file:
        start = file.read(512)
    for magic, name in _MAGIC_NUMBERS:
        if start.startswith(magic):
            return name
    if start[_TAR_MAGIC_OFFSET:].startswith(_TAR_MAGIC):
        return "webdataset"
    first_line = _RATINGS_FILES.get(os.path.basename(path))
    if first_line is not None and start.removeprefix(b"\xef\xbb\xbf").startswith(first_line):
        return "movielens"
    return _SUFFIXES.get(os.path.splitext(path)[1].lower())


def _guess_folder(path: str) -> str | None:
    names = set(list_folder(path))
    for test_file, name in _CIFAR_TEST_FILES.items():
        if {test_file, _CIFAR_TRAINING_FILES[name]} <= names:
            return name
    if names & set(_RATINGS_FILES):
        return "movielens"
    return "webdataset" if any(name.endswith(".tar") for name in names) else None


def suggest_format(path: str, tried: str) -> str:
    """Return the end of a message about a file that is not of the format tried: what it is, or to check it. Local."""
    found = guess_format(path)
    if found is None or found == tried:
        return "copy the file again, or name its format in data.format"
    return f"the file looks like {found}: set data.format to it"


def check_inputs(shape: tuple[int, ...], dtype: np.dtype[Any], place: str) -> None:
    """Accept an array of inputs, [N, *input_shape] of real numbers. Local.

    Raises:
        DataError: fewer than two dims, a dim of length 0, or elements that are no real numbers.
    """
    if dtype.kind not in _REAL_KINDS:
        raise DataError(f"{place}: expected real numbers, found elements of type {dtype}: store inputs as integers or floats")
    if len(shape) < 2 or 0 in shape:
        raise DataError(
            f"{place}: expected inputs of shape (samples, features...), none of them 0, found {shape}: reshape the array"
        )


def check_labels(labels: NDArray[Any], num_samples: int, num_classes: int, place: str) -> NDArray[np.int64]:
    """Return labels as int64[num_samples]. Local.

    Args:
        labels: [num_samples] or [num_samples, 1], integers, or floats with integral values.
        num_samples: how many samples there are.
        num_classes: how many classes; 0: whatever the labels say.
        place: file and array, for messages.

    Raises:
        DataError: another dtype or shape, or a label that is not one of 0 .. num_classes - 1.
    """
    if labels.dtype.kind not in _REAL_KINDS:
        raise DataError(f"{place}: expected integer labels, found elements of type {labels.dtype}: number the classes from 0")
    if labels.shape not in ((num_samples,), (num_samples, 1)):
        raise DataError(
            f"{place}: expected {num_samples} labels, one for each sample, found an array of shape {labels.shape}: "
            "give the labels that belong to these inputs"
        )
    labels = labels.reshape(num_samples)
    largest = num_classes - 1 if num_classes else MAX_LABEL
    wrong = np.flatnonzero(~_are_classes(labels, largest))
    if wrong.size:
        raise wrong_label(f"{place}, sample {wrong[0]}", str(labels[wrong[0]]), num_classes)
    return np.ascontiguousarray(labels, np.int64)


def read_label_array(labels: NDArray[Any], kind: LabelKind, num_samples: int, num_classes: int, place: str) -> NDArray[Any] | None:
    """Return labels as `ArrayDataset` takes them, checked. Local.

    Args:
        labels: [num_samples, ...]; [num_samples, 1] is one class a sample.
        kind: what they are; "none": they are not looked at.
        num_samples: how many samples there are.
        num_classes: how many classes; 0: whatever the labels say.
        place: file and array, for messages.

    Returns:
        Integers for classes (int64, or several a sample in the dtype of `labels`), floats for values, None for none.

    Raises:
        DataError: another dtype or shape, a label that is not one of 0 .. num_classes - 1, or a value that is not finite.
    """
    if kind == "none":
        return None
    if kind == "class" and (labels.dtype.kind not in _REAL_KINDS or labels.ndim < 2 or labels.shape == (num_samples, 1)):
        return check_labels(labels, num_samples, num_classes, place)
    if labels.dtype.kind not in _REAL_KINDS:
        raise DataError(f"{place}: expected real numbers as labels, found elements of type {labels.dtype}: store floats")
    if labels.shape[:1] != (num_samples,) or 0 in labels.shape[1:]:
        raise DataError(
            f"{place}: expected {num_samples} labels, one for each sample, found an array of shape {labels.shape}: "
            "give the labels that belong to these inputs"
        )
    largest = num_classes - 1 if num_classes else MAX_LABEL
    rows = max(1, _SCAN_ELEMENTS // math.prod(labels.shape[1:]))
    for start in range(0, num_samples, rows):
        part = np.asarray(labels[start : start + rows]).reshape(min(rows, num_samples - start), -1)
        with np.errstate(over="ignore"):
            good = np.isfinite(part.astype(np.float32)) if kind == "value" else _are_classes(part, largest)
        if not good.all():
            row, column = (int(i) for i in np.argwhere(~good)[0])
            where, found = f"{place}, sample {start + row}", str(part[row, column])
            if kind == "class":
                raise wrong_label(where, found, num_classes)
            raise DataError(f"{where}: expected finite labels, found {found!r}: mend or drop the sample")
    if kind == "value":
        return labels if labels.dtype.kind == "f" else labels.astype(np.float32)
    return labels if labels.dtype.kind in "iu" else labels.astype(np.int64)


def _are_classes(labels: NDArray[Any], largest: int) -> NDArray[np.bool_]:
    good: NDArray[np.bool_] = (labels >= 0) & (labels <= largest) & (labels == np.floor(labels))
    return good


def check_ids(raw: NDArray[Any], indices: NDArray[np.int64], name: str) -> NDArray[np.int64]:
    """Return inputs as numbers of tokens, users or items, int64 in their shape. Local.

    Args:
        raw: [B, ...], integers, or floats with integral values small enough to be exact.
        indices: int64[B], number of each sample, for messages.
        name: what messages call the data.

    Raises:
        DataError: a value is negative, no integer, or too large for its dtype to tell it from the next integer.
    """
    if raw.dtype.kind == "f":
        largest = 2 ** min(np.finfo(raw.dtype).nmant + 1, 62) - 1
        good = (raw >= 0) & (raw <= largest) & (raw == np.floor(raw))
        expected = f"an integer of 0 .. {largest}, all that {raw.dtype} can tell apart"
    else:
        good = np.ones(raw.shape, np.bool_) if raw.dtype.kind == "b" else (raw >= 0) & (raw <= np.iinfo(np.int64).max)
        expected = "an integer from 0"
    if not good.all():
        place = int(np.argmin(good.reshape(-1)))
        sample, found = indices[place // (raw.size // len(raw))], raw.reshape(-1)[place].item()
        raise DataError(f"{name}, sample {sample}: expected {expected}, found {found}: number tokens, users and items from 0")
    return raw.astype(np.int64, copy=False)


def wrong_label(place: str, found: str, num_classes: int) -> DataError:
    """Return the error for a label that is not one of 0 .. num_classes - 1 (0 classes: any number). Local."""
    expected = f"0 .. {num_classes - 1} ({num_classes} classes)" if num_classes else f"0 .. {MAX_LABEL}"
    return DataError(
        f"{place}: expected an integer label {expected}, found {found!r}: number the classes from 0, or set data.num_classes"
    )


def count_classes(labels: NDArray[Any] | None, num_classes: int) -> int:
    """Return the number of classes: as given, or one more than the largest label where that is 0. Local.

    Values and samples without labels have no classes.
    """
    if labels is None or labels.dtype.kind == "f":
        return 0
    return num_classes or int(labels.max()) + 1


def list_folder(path: str) -> list[str]:
    """Return the sorted names in a folder. Local.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return sorted(os.listdir(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}: check data.path and the permissions") from error
