"""Data files of a structure that was built before: its bytes again, with other attributes, without HDF5's work on every tensor."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, final

import h5py
import numpy as np
from numpy.typing import NDArray

from lepton_mpi.checkpoint.hdf5 import (
    AttributeValue,
    create_data_file,
    encode_attribute,
    write_attribute,
)
from lepton_mpi.checkpoint.layout import META_GROUP, TensorInfo
from lepton_mpi.checkpoint.manifest import frame_ranges
from lepton_mpi.checkpoint.space import reserve_space
from lepton_mpi.checkpoint.storage import Storage, alignment_interval, make_empty
from lepton_mpi.checkpoint.write_process import write_fully

# A structure with more bytes, as the gaps of a wide alignment make it, is built anew for each file rather than kept.
_MAX_KEPT_NBYTES = 64 * 2**20


class _Frame(NamedTuple):
    """What lies between the tensors of a data file.

    Attributes:
        key: whatever the structure follows from, besides tensors and table.
        nbytes: of the file.
        parts: position and bytes of what is not zero.
        attributes: their values in those bytes.
        offsets: of tensors and table.
    """

    key: tuple[object, ...]
    nbytes: int
    parts: list[tuple[int, bytes]]
    attributes: dict[str, AttributeValue]
    offsets: dict[str, int]


@final
class FileMaker:
    """Makes the data files of one run, whose tensors and table are always the same.

    Local. The first file is built by HDF5. Further ones get the bytes that the first has between its tensors, and HDF5 only
    writes the attributes that differ, since each of its objects takes it 50 us.

    Args:
        tensors: global shapes and dtypes, sorted by path.
        table: all extents.
        storage: hints and alignment.
    """

    def __init__(self, tensors: Mapping[str, TensorInfo], table: NDArray[np.void], storage: Storage) -> None:
        self._tensors, self._table, self._storage = tensors, table, storage
        self._frame: _Frame | None = None

    def make(self, file: Path, attributes: Mapping[str, AttributeValue]) -> dict[str, int]:
        """Make a data file as `create_data_file` does; what it holds of the table is to be overwritten.

        Args:
            file: where; must not exist.
            attributes: `/meta` attributes.

        Returns:
            The byte offset in the file of each tensor that has elements, and of the table.

        Raises:
            CheckpointError: an attribute cannot be stored.
            OSError: the file cannot be created.
        """
        sizes = tuple((name, encode_attribute(name, value).dtype) for name, value in attributes.items())
        key = (alignment_interval(file.parent, self._storage), sizes)
        frame = self._frame
        if frame is not None and frame.key == key:
            self._repeat(file, frame, attributes)
            return frame.offsets
        offsets = create_data_file(file, self._tensors, attributes, self._table, self._storage)
        self._frame = self._read(file, key, attributes, offsets)
        return offsets

    def _repeat(self, file: Path, frame: _Frame, attributes: Mapping[str, AttributeValue]) -> None:
        make_empty(file, self._storage)
        descriptor = os.open(file, os.O_WRONLY)
        try:
            os.ftruncate(descriptor, frame.nbytes)
            reserve_space(file)  # before HDF5 writes: it may crash where it finds a disk full
            for position, part in frame.parts:
                write_fully(descriptor, memoryview(part), position)
        finally:
            os.close(descriptor)
        changed = [name for name, value in attributes.items() if value != frame.attributes[name]]  # NaN differs from itself
        with h5py.File(file, "r+", libver=("v110", "v110"), locking=False) as data:
            meta = data[META_GROUP]
            for name in changed:
                write_attribute(meta, name, attributes[name])

    def _read(
        self, file: Path, key: tuple[object, ...], attributes: Mapping[str, AttributeValue], offsets: dict[str, int]
    ) -> _Frame | None:
        """Return the frame of a file just built; None if it is too large to keep."""
        nbytes = file.stat().st_size
        ranges = frame_ranges(
            nbytes, [(offset, self._tensors[path].nbytes) for path, offset in offsets.items() if path in self._tensors]
        )
        if sum(stop - start for start, stop in ranges) > _MAX_KEPT_NBYTES:
            return None
        return _Frame(key, nbytes, list(_parts(file, ranges)), dict(attributes), offsets)


def _parts(file: Path, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, bytes]]:
    """Return the bytes of ranges of a file, but for the zeros at their ends, which a new file has anyway."""
    parts = []
    with file.open("rb", buffering=0) as stream:
        for start, stop in ranges:
            part = os.pread(stream.fileno(), stop - start, start)
            if len(part) != stop - start:
                raise OSError(f"{file} ends at byte {start + len(part)}, expected {stop}")
            part = part.rstrip(b"\0")
            if part:
                parts.append((start, part))
    return parts
