"""The chunked HDF5 file that `python -m lepton_mpi convert` writes: datasets x and y, and the manifest.

Nothing is compressed and every chunk is allocated at once, so that processes can write rows at their offsets in the file.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lepton_mpi.comm.agreement import do_on_all
from lepton_mpi.comm.contract import collective
from lepton_mpi.data.storage.packed_manifest import PackedManifest, parse_manifest
from lepton_mpi.data.storage.piece_digests import ReadRange, check_pieces
from lepton_mpi.data.storage.placed_rows import PlacedRows
from lepton_mpi.data.validation import check_file, suggest_format
from lepton_mpi.errors import DataError
from lepton_mpi.runtime.mpi import MPI

DATASETS = {"inputs": "x", "labels": "y"}  # the defaults of data.inputs_name and data.labels_name
_MANIFEST = "manifest"
_CHUNK_NBYTES = 1 << 20


def allocate_hdf5(path: Path, arrays: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> list[PlacedRows]:
    """Make a file with chunked datasets whose elements are still to be written. Local.

    Args:
        path: the file, which must not be there.
        arrays: shape and type of each dataset.

    Returns:
        Where the rows of each dataset lie.

    Raises:
        OSError: the file system refused.
    """
    placed = []
    with h5py.File(path, "x") as file:
        for name, (shape, dtype) in arrays.items():
            row_nbytes = dtype.itemsize * math.prod(shape[1:])
            rows = max(1, min(_CHUNK_NBYTES // row_nbytes, shape[0]))
            properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            properties.set_chunk((rows, *shape[1:]))
            properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            properties.set_obj_track_times(False)  # the same data gives the same bytes at any time
            kind, space = h5py.h5t.py_create(dtype, logical=True), h5py.h5s.create_simple(shape)
            dataset = h5py.h5d.create(file.id, name.encode(), kind, space, dcpl=properties)
            zeros = (0,) * (len(shape) - 1)
            offsets = [dataset.get_chunk_info_by_coord((row, *zeros)).byte_offset for row in range(0, shape[0], rows)]
            placed.append(PlacedRows(os.fspath(path), row_nbytes, rows, tuple(offsets)))
    return placed


def store_manifest(path: Path, text: str) -> None:
    """Add the manifest to a file that nobody else has open. Local."""
    with h5py.File(path, "r+") as file:
        file[_MANIFEST] = np.frombuffer(text.encode(), np.uint8)


@contextlib.contextmanager
def read_dataset(path: str | os.PathLike[str], name: str) -> Iterator[ReadRange]:
    """Give what reads ranges of the bytes of a dataset's elements, in C order, as the file has them. Local.

    Raises:
        OSError: the file cannot be opened.
        KeyError: there is no such dataset.
    """
    with h5py.File(path, "r") as file:
        dataset = file[name]
        row_nbytes = dataset.dtype.itemsize * math.prod(dataset.shape[1:])

        def read(start: int, stop: int) -> bytes:
            first = start // row_nbytes
            found: bytes = dataset[first : -(-stop // row_nbytes)].tobytes()
            return found[start - first * row_nbytes : stop - first * row_nbytes]

        yield read


@collective("comm")
def verify_hdf5(path: str, comm: MPI.Intracomm) -> PackedManifest:
    """Compare the datasets of a converted file with its manifest, and return that.

    Collective over comm; each rank reads a share.

    Raises:
        DataError: the file is missing, damaged, was not made by convert, or is not what the manifest says.
    """
    manifest = do_on_all(comm, lambda: _check_file(path))
    for array in manifest.arrays:
        place = f"{path}, dataset {array.name!r}"
        with read_dataset(path, array.name) as read:
            check_pieces(_reading(read, place), array.nbytes, array.pieces, place, comm, manifest.piece_nbytes)
    return manifest


def _check_file(path: str) -> PackedManifest:
    """Return the manifest of a file after shapes and types were held against it."""
    check_file(path)
    place = f"{path}, dataset {_MANIFEST!r}"
    try:
        with h5py.File(path, "r") as file:
            if not isinstance(file.get(_MANIFEST), h5py.Dataset):
                raise DataError(f"{path}: expected a file that convert made, found no {_MANIFEST!r}: convert the data again")
            manifest = parse_manifest(np.asarray(file[_MANIFEST][...]).tobytes(), place)
            for array in manifest.arrays:
                found = file.get(array.name)
                described = (found.shape, found.dtype.str) if isinstance(found, h5py.Dataset) else None
                if described != (array.shape, array.dtype):
                    raise DataError(
                        f"{path}: expected a dataset {array.name!r} of shape {array.shape} and type {array.dtype}, as the manifest "
                        f"says, found {described}: copy the file again"
                    )
            return manifest
    except OSError as error:
        raise DataError(f"{path}: expected an HDF5 file: {error}: {suggest_format(path, 'hdf5')}") from error


def _reading(read: ReadRange, place: str) -> ReadRange:
    """Return the same with an error of our own for what HDF5 cannot read."""

    def guarded(start: int, stop: int) -> bytes:
        try:
            return read(start, stop)
        except (OSError, ValueError) as error:
            raise DataError(f"{place}, offset {start}: cannot be read: {error}: the file is damaged, copy it again") from error

    return guarded
