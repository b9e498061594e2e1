"""The packed form that `python -m lepton_mpi convert` writes: NPY files, memory-mapped, and a manifest.

All ranks of a node map the same files, so that their pages are in memory once. docs/data_format.md describes the form.
"""

from __future__ import annotations

import os
import stat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.comm.agreement import do_on_all
from lepton_mpi.comm.contract import collective
from lepton_mpi.data.dataset import ArrayDataset, Dataset
from lepton_mpi.data.formats.npy import map_array
from lepton_mpi.data.formats.tokens import cut_windows
from lepton_mpi.data.storage.packed_manifest import MANIFEST_FILE, PackedArray, PackedManifest, parse_manifest
from lepton_mpi.data.storage.piece_digests import check_pieces, read_file
from lepton_mpi.data.validation import check_inputs, read_label_array, wrong_label
from lepton_mpi.errors import DataError
from lepton_mpi.models.task import LabelKind
from lepton_mpi.runtime.mpi import MPI

_SCAN_ELEMENTS = 1 << 22
_MAX_MANIFEST_NBYTES = 1 << 28  # digests of 50 TB; more is no manifest


def open_packed(
    path: str, num_classes: int = 0, *, labels_required: bool = True, label_kind: LabelKind = "class", context: int = 0
) -> Dataset:
    """Open a folder of the packed form. Local.

    Sizes, shapes and types are held against the manifest, the digests are not (see `verify_packed`).

    Args:
        path: the folder.
        num_classes: number of classes, or of tokens; 0: as the manifest says.
        labels_required: whether a folder without labels is an error.
        label_kind: what labels are read as; none are read for "none".
        context: tokens of a sample, for text.

    Raises:
        ConfigError: text, and `context` is 0.
        DataError: a file is missing, damaged, or not what the manifest says; or the labels are of another kind.
    """
    manifest = read_manifest(path)
    dataset = _open(path, manifest, num_classes, labels_required, label_kind, context)
    dataset.class_names = manifest.class_names
    return dataset


def _open(
    path: str, manifest: PackedManifest, num_classes: int, labels_required: bool, label_kind: LabelKind, context: int
) -> Dataset:
    name = os.path.basename(os.path.normpath(path))
    inputs = _map(path, manifest.inputs)
    if manifest.layout == "tokens":
        if label_kind == "value":
            raise DataError(f"{path}: text has tokens, not values, as labels: choose a language model in model.task")
        return cut_windows(name, path, inputs, context, num_classes or manifest.num_classes)
    check_inputs(inputs.shape, inputs.dtype, os.path.join(path, manifest.inputs.name))
    if label_kind == "none" or (manifest.labels is None and not labels_required):
        return ArrayDataset(name, inputs, None, 0)
    if manifest.labels is None:
        raise DataError(f"{path}: expected labelled samples, found a folder without labels: convert data that has them")
    place = os.path.join(path, manifest.labels.name)
    labels = _map(path, manifest.labels)
    if label_kind == "class" and manifest.label_kind == "class" and labels.dtype.kind in "iu":
        num_classes = num_classes or manifest.num_classes
        _check_classes(labels, num_classes, place)
        return ArrayDataset(name, inputs, labels, num_classes)  # no copy, unlike what other kinds may need
    found = read_label_array(labels, label_kind, manifest.num_samples, num_classes, place)
    return ArrayDataset(name, inputs, found, num_classes or _largest(found) + 1)


@collective("comm")
def verify_packed(path: str, comm: MPI.Intracomm) -> PackedManifest:
    """Compare every byte of a folder of the packed form with its manifest, and return that.

    Collective over comm; each rank reads a share.

    Raises:
        DataError: a file is missing, damaged, or not what the manifest says; names the file and where the first difference lies.
    """
    manifest = do_on_all(comm, lambda: _check_files(path))
    for array in manifest.arrays:
        file = os.path.join(path, array.name)
        check_pieces(read_file(file), array.nbytes, array.pieces, file, comm, manifest.piece_nbytes)
    return manifest


def read_manifest(path: str) -> PackedManifest:
    """Return the manifest of a folder of the packed form. Local.

    Raises:
        DataError: the folder or its manifest is missing, or the manifest malformed.
    """
    file = os.path.join(path, MANIFEST_FILE)
    try:
        if not stat.S_ISDIR(os.stat(path).st_mode):
            raise DataError(f"{path}: expected a folder that convert made, found a file: set data.format to what it is")
        nbytes = _regular_size(file)
        if nbytes > _MAX_MANIFEST_NBYTES:
            raise DataError(f"{file}: expected a manifest of at most {_MAX_MANIFEST_NBYTES} bytes, found {nbytes}: it is none")
        with open(file, "rb") as stream:
            text = stream.read()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"{path!r}: expected a folder with a {MANIFEST_FILE}, as convert makes it: {reason}: check data.path and the "
            "permissions, or convert the data again"
        ) from error
    return parse_manifest(text, file)


def is_packed(path: str) -> bool:
    """Return whether a path is a folder with a manifest, which then may still be wrong. Local."""
    return os.path.isfile(os.path.join(path, MANIFEST_FILE))


def _check_files(path: str) -> PackedManifest:
    manifest = read_manifest(path)
    for array in manifest.arrays:
        _map(path, array)
    return manifest


def _map(folder: str, expected: PackedArray) -> NDArray[Any]:
    """Return an array of the folder, memory-mapped, after what its header says was held against the manifest."""
    file = os.path.join(folder, expected.name)
    try:
        nbytes = _regular_size(file)
    except OSError as error:
        raise DataError(
            f"{file}: expected a readable file, as the manifest says: {error.strerror}: copy the folder again"
        ) from error
    if nbytes != expected.nbytes:
        raise DataError(
            f"{file}, offset {min(nbytes, expected.nbytes)}: expected {expected.nbytes} bytes by the manifest, found {nbytes}: "
            "the file was cut short or appended to, copy it again"
        )
    array = map_array(file)
    if array.shape != expected.shape or array.dtype.str != expected.dtype or not array.flags.c_contiguous:
        raise DataError(
            f"{file}, offset 0: expected {expected.shape} of {expected.dtype} in C order, as the manifest says, found "
            f"{array.shape} of {array.dtype.str}: copy the folder again"
        )
    return array


def _regular_size(file: str) -> int:
    """Return the size of a file that is no link, since what a link leads to is not part of the folder."""
    status = os.lstat(file)
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{file}: expected a file in the folder itself, found a link, folder or device: put a copy there")
    return status.st_size


def _check_classes(labels: NDArray[Any], num_classes: int, place: str) -> None:
    """Accept labels of 0 .. num_classes - 1, read piece by piece so that no copy of them is made."""
    rows = max(1, _SCAN_ELEMENTS // max(1, labels[:1].size))
    for start in range(0, len(labels), rows):
        part = np.asarray(labels[start : start + rows])
        if int(part.min()) < 0 or int(part.max()) >= num_classes:
            index = np.argwhere((part < 0) | (part >= num_classes))[0]
            raise wrong_label(f"{place}, sample {start + index[0]}", str(part[tuple(index)]), num_classes)


def _largest(labels: NDArray[Any] | None) -> int:
    return -1 if labels is None or labels.dtype.kind == "f" else int(labels.max())
