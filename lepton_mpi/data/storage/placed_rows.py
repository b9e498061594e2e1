"""Where the rows of an array lie in a file, so that several processes write their own at once."""

from __future__ import annotations

import io
import math
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray


@final
@dataclass(frozen=True)
class PlacedRows:
    """The place of an array's rows in a file: extents of equally many rows, the last one maybe not full.

    Attributes:
        path: the file.
        row_nbytes: bytes of a row.
        extent_rows: rows of an extent.
        offsets: where each extent begins in the file.
    """

    path: str
    row_nbytes: int
    extent_rows: int
    offsets: tuple[int, ...]

    def write(self, descriptor: int, first: int, rows: NDArray[Any]) -> None:
        """Write rows at their place. Local.

        Args:
            descriptor: the file, open for writing.
            first: number of the first row.
            rows: [B, ...], in C order, of the type and byte order of the file.

        Raises:
            OSError: the file system refused.
        """
        data = rows.reshape(-1).view(np.uint8).data
        written = 0
        while written < len(rows):
            extent, place = divmod(first + written, self.extent_rows)
            count = min(self.extent_rows - place, len(rows) - written)
            part = data[written * self.row_nbytes : (written + count) * self.row_nbytes]
            _write_all(descriptor, part, self.offsets[extent] + place * self.row_nbytes)
            written += count

    def read(self, file: NDArray[np.uint8], indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the bytes of rows, uint8[B, row_nbytes], owned by the caller. Local.

        Args:
            file: all bytes of the file, memory-mapped.
            indices: int64[B], numbers of rows in any order.
        """
        extents, places = np.divmod(indices, self.extent_rows)
        starts = self._offset_array[extents] + places * self.row_nbytes
        found = np.empty((len(indices), self.row_nbytes), np.uint8)
        if len(indices) and (np.diff(starts) == self.row_nbytes).all():
            found.reshape(-1)[:] = file[starts[0] : starts[-1] + self.row_nbytes]  # one row after the other
            return found
        for row, start in enumerate(starts.tolist()):
            found[row] = file[start : start + self.row_nbytes]
        return found

    @cached_property
    def _offset_array(self) -> NDArray[np.int64]:
        return np.array(self.offsets, np.int64)


def allocate_npy(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> PlacedRows:
    """Make an NPY file of its final size whose elements are still to be written. Local.

    Args:
        path: the file, which must not be there.
        shape: dims of the array, at least one.
        dtype: type of its elements.

    Raises:
        OSError: the file system refused.
    """
    header = io.BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, description)
    row_nbytes = dtype.itemsize * math.prod(shape[1:])
    offset = header.tell()
    with path.open("xb") as file:
        file.write(header.getvalue())
        file.truncate(offset + shape[0] * row_nbytes)
    return PlacedRows(os.fspath(path), row_nbytes, max(1, shape[0]), (offset,))


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while len(data):
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count
