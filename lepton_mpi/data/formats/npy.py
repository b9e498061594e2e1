"""NumPy's NPY files: one for the inputs, one for the labels, both memory-mapped.

Source: NumPy Enhancement Proposal 1, "A simple file format for NumPy arrays".
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.data.dataset import ArrayDataset
from lepton_mpi.data.formats.array_pair import open_pair
from lepton_mpi.data.validation import check_file, suggest_format
from lepton_mpi.errors import DataError
from lepton_mpi.models.task import LabelKind


def open_npy(path: str, labels_path: str = "", num_classes: int = 0, *, label_kind: LabelKind = "class") -> ArrayDataset:
    """Open an NPY file of inputs and, where given, one of labels. Local.

    Args:
        path: inputs, [N, ...], memory-mapped.
        labels_path: labels, [N, ...]; empty: the samples have none.
        num_classes: number of classes; 0: one more than the largest label.
        label_kind: what the labels are.

    Raises:
        DataError: a file is missing or malformed, or the two do not fit.
    """
    return open_pair(map_array, path, labels_path, num_classes, label_kind)


def map_array(path: str) -> NDArray[Any]:
    """Return the array of an NPY file, memory-mapped. Local.

    Raises:
        DataError: the file is missing, malformed, holds Python objects, or has another length than its header says.
    """
    file_nbytes = check_file(path)
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # NumPy's reader of headers raises many types on damaged bytes
        raise DataError(f"{path}: expected an NPY array of numbers: {error}: {suggest_format(path, 'npy')}") from error
    expected = array.offset + array.nbytes
    if file_nbytes != expected:
        raise DataError(
            f"{path}: expected {expected} bytes, for an array of shape {array.shape} and type {array.dtype}, found {file_nbytes}: "
            "the file has something appended, write it again"
        )
    return array
