"""NumPy's NPZ archives: inputs and labels as named arrays of one file, loaded into memory."""

from __future__ import annotations

import os
import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.data.dataset import ArrayDataset
from lepton_mpi.data.validation import check_file, check_inputs, count_classes, read_label_array, suggest_format
from lepton_mpi.errors import DataError
from lepton_mpi.models.task import LabelKind


def open_npz(
    path: str,
    inputs_name: str,
    labels_name: str,
    num_classes: int = 0,
    *,
    labels_required: bool = True,
    label_kind: LabelKind = "class",
) -> ArrayDataset:
    """Open an NPZ archive. Local.

    Args:
        path: the archive, compressed or not.
        inputs_name: name of the array of inputs, [N, ...].
        labels_name: name of the array of labels, [N, ...].
        num_classes: number of classes; 0: one more than the largest label.
        labels_required: whether an archive without labels is an error.
        label_kind: what the labels are; none are read for "none".

    Raises:
        DataError: the file is missing or malformed, lacks an array, or the two do not fit.
    """
    check_file(path)
    wanted = {inputs_name: "data.inputs_name"}
    if label_kind != "none":
        wanted[labels_name] = "data.labels_name"
    arrays, present = _read_arrays(path, tuple(wanted))
    for name, key in wanted.items():
        if name not in arrays and (name == inputs_name or labels_required):
            raise DataError(f"{path}: expected an array {name!r}, found {', '.join(present) or 'no array'}: set {key}")
    inputs, name = arrays[inputs_name], os.path.basename(path)
    check_inputs(inputs.shape, inputs.dtype, f"{path}, array {inputs_name!r}")
    if label_kind == "none" or labels_name not in arrays:
        return ArrayDataset(name, inputs, None, 0)
    labels = read_label_array(arrays[labels_name], label_kind, inputs.shape[0], num_classes, f"{path}, array {labels_name!r}")
    return ArrayDataset(name, inputs, labels, count_classes(labels, num_classes))


def _read_arrays(path: str, wanted: tuple[str, ...]) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Return the wanted arrays that the archive holds, and the names of all arrays in it."""
    place = path
    try:
        with zipfile.ZipFile(path) as archive:
            present = sorted(name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy"))
            arrays = {}
            for name in (name for name in wanted if name in present):
                place = f"{path}, array {name!r}"
                with archive.open(f"{name}.npy") as file:
                    arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
            return arrays, present
    except Exception as error:  # zip, zlib and NumPy's reader raise many types on damaged bytes
        raise DataError(
            f"{place}: expected an NPZ archive with arrays of numbers: {error}: {suggest_format(path, 'npz')}"
        ) from error
