"""Where the rows of an HDF5 dataset lie in its file, for datasets that are stored as they are."""

from __future__ import annotations

import math
import os

import h5py

from lepton_mpi.data.storage.placed_rows import PlacedRows


def find_plain_rows(dataset: h5py.Dataset, path: str) -> PlacedRows | None:
    """Return the place of the rows of a dataset in its file. Local.

    Args:
        dataset: [N, ...] of numbers, in a file of its own.
        path: the file.

    Returns:
        None where HDF5 must read them: they are compressed, cut into parts, not written, or of a type that NumPy lacks.
    """
    shape, itemsize = dataset.shape, dataset.dtype.itemsize
    same_type = h5py.h5t.py_create(dataset.dtype, logical=True).equal(dataset.id.get_type())
    if 0 in shape or not same_type or dataset.file.userblock_size or dataset.id.get_create_plist().get_nfilters():
        return None
    row_nbytes, num_rows = itemsize * math.prod(shape[1:]), shape[0]
    if dataset.chunks is None:
        offsets, rows = [dataset.id.get_offset()], num_rows
    else:
        rows = dataset.chunks[0]
        if dataset.chunks[1:] != shape[1:]:
            return None
        zeros = (0,) * (len(shape) - 1)
        try:
            offsets = [dataset.id.get_chunk_info_by_coord((row, *zeros)).byte_offset for row in range(0, num_rows, rows)]
        except (OSError, RuntimeError, ValueError):  # the index of the chunks is damaged, which reading will say
            return None
    nbytes = os.stat(path).st_size
    for number, offset in enumerate(offsets):
        if offset is None or offset + min(rows, num_rows - number * rows) * row_nbytes > nbytes:
            return None
    return PlacedRows(path, row_nbytes, rows, tuple(offsets))
