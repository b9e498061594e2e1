"""The handwritten digits that ship with the package; their origin stands in DIGITS.md."""

from __future__ import annotations

from importlib.resources import as_file, files

from lepton_mpi.data.dataset import ArrayDataset, load_into_memory
from lepton_mpi.data.formats.hdf5 import Hdf5Dataset
from lepton_mpi.models.task import LabelKind


def open_digits(num_classes: int = 0, *, label_kind: LabelKind = "class") -> ArrayDataset:
    """Return the 1,797 images of 8 x 8 pixels with values 0 .. 16, labelled 0 .. 9. Local.

    Args:
        num_classes: number of classes; 0: the 10 that there are.
        label_kind: what labels are read as: classes, the digits as values, or not at all.

    Raises:
        DataError: `num_classes` is below 10.
    """
    with as_file(files("lepton_mpi.data.formats") / "digits.h5") as path:
        dataset = load_into_memory(Hdf5Dataset(str(path), "x", "y", num_classes, label_kind=label_kind))
    dataset.name = "digits"
    return dataset
