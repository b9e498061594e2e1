"""The IDX format of MNIST: a magic number, big-endian dims, big-endian elements.

Source: LeCun, Cortes, Burges, "The MNIST database", section "File formats".
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.data.dataset import ArrayDataset
from lepton_mpi.data.formats.array_pair import open_pair
from lepton_mpi.data.validation import check_file, suggest_format
from lepton_mpi.errors import DataError
from lepton_mpi.models.task import LabelKind

_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}  # third byte of the magic number
_GZIP_MAGIC = b"\x1f\x8b"  # RFC 1952
_MAX_DIMS = 32  # NumPy 1's own limit
_BLOCK_NBYTES = 1 << 20


def open_idx(path: str, labels_path: str = "", num_classes: int = 0, *, label_kind: LabelKind = "class") -> ArrayDataset:
    """Open an IDX file of inputs and, where given, one of labels; either may be gzipped. Local.

    Plain files are memory-mapped, so that only what is read is loaded; gzipped ones are
    decompressed into memory.

    Args:
        path: inputs, [N, ...].
        labels_path: labels, [N, ...]; empty: the samples have none.
        num_classes: number of classes; 0: one more than the largest label.
        label_kind: what the labels are.

    Raises:
        DataError: a file is missing or malformed, or the two do not fit.
    """
    return open_pair(_read_array, path, labels_path, num_classes, label_kind)


def _read_array(path: str) -> NDArray[Any]:
    file_nbytes = check_file(path)
    with open(path, "rb") as file:
        if file.read(2) == _GZIP_MAGIC:
            return _read_gzipped(path)
        file.seek(0)
        dtype, shape, offset = _read_header(file, path)
    expected = offset + math.prod(shape) * dtype.itemsize
    if file_nbytes != expected:
        raise _wrong_length(path, shape, dtype, expected, f"{file_nbytes} bytes")
    if file_nbytes == offset:
        return np.empty(shape, dtype)  # nothing to map
    return np.memmap(path, dtype, mode="r", offset=offset, shape=shape)


def _read_gzipped(path: str) -> NDArray[Any]:
    try:
        with gzip.open(path, "rb") as file:
            dtype, shape, offset = _read_header(file, path)
            nbytes = math.prod(shape) * dtype.itemsize
            payload = bytearray()
            # In blocks, since a read of what a damaged header asks for could exhaust the memory.
            while len(payload) <= nbytes and (block := file.read(min(_BLOCK_NBYTES, nbytes + 1 - len(payload)))):
                payload += block
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip stream ({error}): copy the file again") from error
    if len(payload) != nbytes:
        found = f"{offset + len(payload)} bytes" if len(payload) < nbytes else "more"
        raise _wrong_length(path, shape, dtype, offset + nbytes, found + " after decompression")
    return np.frombuffer(payload, dtype).reshape(shape)


def _read_header(file: IO[bytes] | gzip.GzipFile, path: str) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """Return dtype, shape and the offset of the first element."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _DTYPES or magic[3] > _MAX_DIMS:
        raise DataError(
            f"{path}, offset 0: expected an IDX magic number (00 00, a type of {', '.join(f'{code:02x}' for code in _DTYPES)}, "
            f"up to {_MAX_DIMS} dims), found {magic.hex(' ')}: {suggest_format(path, 'idx')}"
        )
    dims = file.read(4 * magic[3])
    if len(dims) < 4 * magic[3]:
        raise DataError(
            f"{path}, offset 4: expected {magic[3]} dims of 4 bytes, found {len(dims)} bytes before the end of the file: "
            "the file is cut short, copy it again"
        )
    return np.dtype(_DTYPES[magic[2]]), struct.unpack(f">{magic[3]}I", dims), 4 + len(dims)


def _wrong_length(path: str, shape: tuple[int, ...], dtype: np.dtype[Any], expected: int, found: str) -> DataError:
    elements = " x ".join(map(str, shape))
    return DataError(
        f"{path}: expected {expected} bytes, for a header and {elements} elements of {dtype.itemsize} bytes, found {found}: "
        "the file is cut short or has something appended, copy it again"
    )
