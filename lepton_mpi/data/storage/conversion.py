"""Writing a data set in one of the two forms that are fast to train on: a packed folder, or a chunked HDF5 file.

Rank 0 lays the files out at their final size; then every rank writes its range of rows at the offsets where they belong, so that
the bytes do not depend on the number of ranks. The manifest comes last, and the name at the very end.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, final

import numpy as np
from numpy.typing import NDArray

import lepton_mpi
from lepton_mpi.comm.agreement import do_on_all, do_on_root, raise_together
from lepton_mpi.comm.contract import collective
from lepton_mpi.data.dataset import Dataset
from lepton_mpi.data.formats.tokens import TokenWindows
from lepton_mpi.data.storage.drafts import Draft, free_nbytes, remove_abandoned
from lepton_mpi.data.storage.packed_hdf5 import DATASETS, allocate_hdf5, read_dataset, store_manifest
from lepton_mpi.data.storage.packed_manifest import MANIFEST_FILE, PackedArray, PackedManifest
from lepton_mpi.data.storage.piece_digests import ReadRange, combine_digests, digest_pieces, read_file
from lepton_mpi.data.storage.placed_rows import PlacedRows, allocate_npy
from lepton_mpi.data.validation import check_inputs
from lepton_mpi.errors import ConfigError, DataError, LeptonError
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.runtime.ranges import split_range
from lepton_mpi.runtime.whole_file import sync

HDF5_SUFFIXES = (".h5", ".hdf5")
_CHUNK_NBYTES = 8 << 20  # what a rank reads and writes at a time
_HDF5_DRAFT = "data.h5"
_Result = TypeVar("_Result")


@final
@dataclass(frozen=True)
class Source:
    """What is converted, in words for the manifest.

    Attributes:
        format: its `data.format`.
        split: which part of it: all, train, validation or test.
    """

    format: str
    split: str = "all"


@final
@dataclass(frozen=True)
class _Column:
    """An array to write: its name, its shape and dtype, and what reads the rows of a range."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[int, int], NDArray[Any]]

    @property
    def row_nbytes(self) -> int:
        return self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))


def check_output(output: Path) -> None:
    """Accept a name that is free. Local; one rank calls it, for all.

    Raises:
        ConfigError: the name is taken.
    """
    if output.is_symlink() or output.exists():
        raise ConfigError(f"--output: there is something at {output}: give another name, or remove it first")


@collective("comm")
def convert(dataset: Dataset, source: Source, output: Path, comm: MPI.Intracomm) -> PackedManifest:
    """Write a data set in the form that the name of the output asks for, and return its manifest.

    Collective over comm. Every rank reads and writes a range of the rows, a few MiB at a time.

    Args:
        dataset: the samples; the same on all ranks.
        source: where they come from.
        output: file (.h5, .hdf5) or folder to make; all ranks must see it.
        comm: ranks that share the work.

    Raises:
        ConfigError: there is something of that name.
        DataError: the samples cannot be read, or there are none.
        LeptonError: the output cannot be written.
    """
    do_on_root(comm, lambda: check_output(output))
    hdf5 = output.suffix.lower() in HDF5_SUFFIXES
    columns = do_on_all(comm, lambda: _describe_columns(dataset, hdf5))
    draft: Draft | None = None
    try:
        # Only rank 0 keeps the draft, since its lock must not outlive the process that made it.
        if comm.Get_rank() == 0:
            draft, error = _make_draft(output)
        else:
            error = None
        raise_together(comm, error)
        path = Path(comm.bcast(str(draft.path) if draft else None))
        placed = do_on_root(comm, lambda: _writing(output, lambda: _allocate(path, columns, hdf5)))
        do_on_all(comm, lambda: _writing(output, lambda: _write_part(dataset, columns, placed, comm)))
        arrays = _digest_arrays(path, columns, hdf5, comm)
        manifest = _describe(dataset, source, columns, arrays, hdf5)
        do_on_root(comm, lambda: _writing(output, lambda: _commit(draft, manifest, hdf5)))
        return manifest
    finally:
        if draft is not None:
            draft.close()


def _make_draft(output: Path) -> tuple[Draft | None, Exception | None]:
    try:
        remove_abandoned(output.parent, output.name)
        return Draft(output), None
    except OSError as error:
        return None, ConfigError(
            f"--output: cannot write {output}: {error.strerror}; give a name in a folder that exists and can be written"
        )


def _describe_columns(dataset: Dataset, hdf5: bool) -> list[_Column]:
    """Return the arrays to write; text is written as its tokens, unless the form has no windows of its own."""
    if isinstance(dataset, TokenWindows) and not hdf5:
        tokens = dataset.tokens
        return [_Column("inputs", tokens.shape, tokens.dtype.newbyteorder("<"), lambda start, stop: tokens[start:stop])]
    num_samples, nothing = dataset.num_samples, np.arange(0)
    dtype = dataset.read_raw(nothing).dtype.newbyteorder("<")
    if not num_samples:
        raise DataError(
            f"{dataset.name}: expected samples to convert, found none: see data.test_fraction, or choose another --split"
        )
    check_inputs((num_samples, *dataset.input_shape), dtype, dataset.name)
    inputs = _Column(
        "inputs", (num_samples, *dataset.input_shape), dtype, lambda start, stop: dataset.read_raw(np.arange(start, stop))
    )
    if dataset.label_kind == "none":
        return [inputs]
    kind = np.dtype("<f4") if dataset.label_kind == "value" else _class_dtype(dataset.num_classes)
    labels = _Column(
        "labels", (num_samples, *dataset.label_shape), kind, lambda start, stop: dataset.read_labels(np.arange(start, stop))
    )
    return [inputs, labels]


def _class_dtype(num_classes: int) -> np.dtype[Any]:
    """Return the smallest unsigned type that holds all classes."""
    return next(np.dtype(code) for code in ("u1", "<u2", "<u4") if num_classes <= 1 << (8 * np.dtype(code).itemsize))


def _allocate(draft: Path, columns: Sequence[_Column], hdf5: bool) -> list[PlacedRows]:
    needed, free = sum(column.shape[0] * column.row_nbytes for column in columns), free_nbytes(draft)
    if needed > free:
        raise LeptonError(f"--output: {draft.parent} needs {needed} bytes free, found {free}: make room, or write elsewhere")
    if hdf5:
        return allocate_hdf5(draft / _HDF5_DRAFT, {DATASETS[column.name]: (column.shape, column.dtype) for column in columns})
    return [allocate_npy(draft / f"{column.name}.npy", column.shape, column.dtype) for column in columns]


def _write_part(dataset: Dataset, columns: Sequence[_Column], placed: Sequence[PlacedRows], comm: MPI.Intracomm) -> None:
    """Write this rank's range of the rows of all columns, to the disk."""
    start, stop = split_range(columns[0].shape[0], comm.Get_size(), comm.Get_rank())
    step = max(1, _CHUNK_NBYTES // max(1, sum(column.row_nbytes for column in columns)))
    with contextlib.ExitStack() as files:
        descriptors = {path: os.open(path, os.O_WRONLY) for path in sorted({rows.path for rows in placed})}
        for descriptor in descriptors.values():
            files.callback(os.close, descriptor)
        for first in range(start, stop, step):
            last = min(first + step, stop)
            for column, rows in zip(columns, placed, strict=True):
                found = column.read(first, last)
                if column.name == "labels" and dataset.label_kind == "class":
                    _check_classes(found, dataset, first)
                rows.write(descriptors[rows.path], first, np.ascontiguousarray(found, column.dtype))
        for descriptor in descriptors.values():
            os.fsync(descriptor)


def _check_classes(labels: NDArray[Any], dataset: Dataset, first: int) -> None:
    """Accept labels that the narrow type of the file holds."""
    if labels.min() < 0 or labels.max() >= dataset.num_classes:
        place = np.argwhere((labels < 0) | (labels >= dataset.num_classes))[0]
        raise DataError(
            f"{dataset.name}, sample {first + place[0]}: expected a label of 0 .. {dataset.num_classes - 1}, found "
            f"{labels[tuple(place)]}: number the classes from 0"
        )


@collective("comm")
def _digest_arrays(draft: Path, columns: Sequence[_Column], hdf5: bool, comm: MPI.Intracomm) -> list[PackedArray]:
    """Return what the manifest says of each array, from the bytes that are on the disk. Collective over comm."""
    arrays = []
    for column in columns:
        with contextlib.ExitStack() as opened:
            name, nbytes, read = do_on_all(comm, lambda column=column, opened=opened: _open(draft, column, hdf5, opened))  # type: ignore[misc]
            pieces = digest_pieces(read, nbytes, comm)
        arrays.append(PackedArray(name, column.shape, column.dtype.str, nbytes, combine_digests(pieces), pieces))
    comm.Barrier()  # all have closed the file, which HDF5 locks while it is open, before rank 0 writes to it again
    return arrays


def _open(draft: Path, column: _Column, hdf5: bool, opened: contextlib.ExitStack) -> tuple[str, int, ReadRange]:
    """Return the name of a written array, its size, and what reads it."""
    if hdf5:
        name = DATASETS[column.name]
        return name, column.shape[0] * column.row_nbytes, opened.enter_context(read_dataset(draft / _HDF5_DRAFT, name))
    path = draft / f"{column.name}.npy"
    return path.name, path.stat().st_size, read_file(path)


def _describe(
    dataset: Dataset, source: Source, columns: Sequence[_Column], arrays: Sequence[PackedArray], hdf5: bool
) -> PackedManifest:
    tokens = isinstance(dataset, TokenWindows) and not hdf5
    return PackedManifest(
        writer=lepton_mpi.__version__,
        source_name=dataset.name,
        source_format=source.format,
        split=source.split,
        layout="tokens" if tokens else "rows",
        num_samples=columns[0].shape[0],
        label_kind=dataset.label_kind,
        num_classes=dataset.num_classes,
        class_names=tuple(dataset.class_names),
        inputs=arrays[0],
        labels=arrays[1] if len(arrays) > 1 else None,
    )


def _commit(draft: Draft | None, manifest: PackedManifest, hdf5: bool) -> None:
    assert draft is not None
    check_output(draft.target)  # somebody may have made it meanwhile
    if hdf5:
        store_manifest(draft.path / _HDF5_DRAFT, manifest.to_json())
        sync(draft.path / _HDF5_DRAFT)
        draft.commit_file(_HDF5_DRAFT)
        return
    (draft.path / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    sync(draft.path / MANIFEST_FILE)
    draft.commit_folder()


def _writing(output: Path, work: Callable[[], _Result]) -> _Result:
    """Return the result of work that writes the output; what the file system refuses is said of it."""
    try:
        return work()
    except OSError as error:
        raise LeptonError(
            f"cannot write {output}: {error.strerror or error}; see whether its disk is full, over quota or read-only"
        ) from error
