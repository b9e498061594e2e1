"""Inputs in one file and labels in another, an array each."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from lepton_mpi.data.dataset import ArrayDataset
from lepton_mpi.data.validation import check_inputs, count_classes, read_label_array
from lepton_mpi.models.task import LabelKind


def open_pair(
    read: Callable[[str], NDArray[Any]], path: str, labels_path: str, num_classes: int, label_kind: LabelKind
) -> ArrayDataset:
    """Open a file of inputs and, where given and wanted, one of labels. Local.

    Args:
        read: returns the array of a file.
        path: inputs, [N, ...].
        labels_path: labels, [N, ...]; empty: the samples have none.
        num_classes: number of classes; 0: one more than the largest label.
        label_kind: what the labels are.

    Raises:
        DataError: what `read` raised, or the two do not fit.
    """
    inputs = read(path)
    check_inputs(inputs.shape, inputs.dtype, path)
    name = os.path.basename(path)
    if not labels_path or label_kind == "none":
        return ArrayDataset(name, inputs, None, 0)
    labels = read_label_array(read(labels_path), label_kind, inputs.shape[0], num_classes, labels_path)
    return ArrayDataset(name, inputs, labels, count_classes(labels, num_classes))
