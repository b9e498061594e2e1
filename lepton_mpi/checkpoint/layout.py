"""What a checkpoint holds: file names, format version, tensor slices and the extents they are written in."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.checkpoint.write_process import crc32
from lepton_mpi.errors import CheckpointError

FORMAT_MAJOR = 1  # readers refuse another one
FORMAT_MINOR = 1  # readers accept any; `migration` says what changed
DATA_FILE = "data.h5"
MANIFEST_FILE = "MANIFEST.json"
META_GROUP = "/meta"
TENSOR_INDEX = "/integrity/tensors"
EXTENT_TABLE = "/integrity/extents"

# One digest, one write call and one verification read each: small enough to share a tensor's verification
# between ranks and to stay far below the 512 MiB (2 GiB in old releases) that a collective write can take.
EXTENT_NBYTES = 64 * 2**20

# Types that every HDF5 reader knows; others (bfloat16, fp8) are stored as the unsigned integer of their width.
TENSOR_DTYPES = frozenset(
    np.dtype(name)
    for name in ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
)

_PATH = re.compile(r"(/[A-Za-z0-9_\-.]+)+", re.ASCII)
_RESERVED = ("meta", "integrity")

# Folder of a committed checkpoint, and of the predecessor of the same step while it is replaced.
STEP_FOLDER = re.compile(r"step-(\d{9,})(\.replaced)?", re.ASCII)


class TensorInfo(NamedTuple):
    """Global shape and dtype of one logical tensor."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class TensorSlice:
    """What one rank holds of one logical tensor and must write.

    Attributes:
        path: where the tensor lies in the file, as "/param/layers.0.weight".
        global_shape: shape of the logical tensor.
        starts: where the block begins in the logical tensor, one index a dim.
        array: the block, contiguous or strided, of one of `TENSOR_DTYPES`; it may be empty.
    """

    path: str
    global_shape: tuple[int, ...]
    starts: tuple[int, ...]
    array: NDArray[Any]

    def check(self) -> None:
        """Refuse a slice that no file could hold. Local.

        Raises:
            CheckpointError: the path, the dtype or the bounds of the block are impossible.
        """
        parts = self.path.split("/")
        if not _PATH.fullmatch(self.path) or {".", ".."} & set(parts) or parts[1] in _RESERVED:
            raise CheckpointError(
                f"tensor path {self.path!r}: expected /group/name of letters, digits, '_', '-' and '.', "
                "outside /meta and /integrity"
            )
        if self.array.dtype not in TENSOR_DTYPES or not self.array.dtype.isnative:
            raise CheckpointError(
                f"tensor {self.path}: dtype {self.array.dtype.str} cannot be stored; expected one of "
                f"{', '.join(sorted(str(dtype) for dtype in TENSOR_DTYPES))} in native byte order; "
                "view others as unsigned integers"
            )
        if not block_fits(self.starts, self.array.shape, self.global_shape):
            raise CheckpointError(
                f"tensor {self.path}: a block of shape {self.array.shape} at {self.starts} "
                f"does not lie in the global shape {self.global_shape}"
            )

    def extents(self) -> Iterator[Extent]:
        """Cut the block into extents of at most `EXTENT_NBYTES`; none for an empty block. Local."""
        for starts, array in cut_block(self.starts, self.array, EXTENT_NBYTES):
            yield Extent(self.path, starts, array)


@dataclass(frozen=True, eq=False)
class Extent:
    """A piece of a slice: the unit of writing, digesting and verifying."""

    path: str
    starts: tuple[int, ...]
    array: NDArray[Any]


def digest(array: NDArray[Any]) -> int:
    """Return the CRC-32 (ISO-HDLC, as in zlib) of an array's elements in C order. Local."""
    return crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def block_fits(starts: Sequence[int], shape: Sequence[int], whole: Sequence[int]) -> bool:
    """Say whether a block lies inside a tensor of shape `whole`. Local."""
    return len(starts) == len(shape) == len(whole) and all(
        min(start, length) >= 0 and start + length <= limit for start, length, limit in zip(starts, shape, whole, strict=True)
    )


def file_runs(starts: Sequence[int], shape: Sequence[int], info: TensorInfo) -> tuple[int, int, list[tuple[int, int]]]:
    """Return where the elements of a block lie in their tensor.

    Local.

    Returns:
        Byte position of the first; bytes of a run of them that is contiguous in the file; and `(count, stride)` of the dims
        over which such runs repeat, outermost first, strides in bytes.
    """
    whole = info.shape
    inner = len(shape)  # dims from `inner` on are complete, so a run spans them and a range of the dim before
    while inner and shape[inner - 1] == whole[inner - 1]:
        inner -= 1
    outer = max(inner - 1, 0)
    strides = [math.prod(whole[dim + 1 :]) * info.dtype.itemsize for dim in range(len(whole))]
    first = sum(start * stride for start, stride in zip(starts, strides, strict=True))
    return first, math.prod(shape[outer:]) * info.dtype.itemsize, list(zip(shape[:outer], strides[:outer], strict=True))


def cut_run(shape: Sequence[int], start: int, stop: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield `(starts, shape)` of the blocks that make up elements start..stop of an array in C order.

    Local. A run of a flat buffer is no block of the array in it: it may begin and end within rows.

    Args:
        shape: of the array; no dims where it is a scalar.
        start, stop: range of its elements.
    """
    if start >= stop:
        return
    if len(shape) < 2:
        yield ((start,), (stop - start,)) if shape else ((), ())
        return
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row  # the whole rows
    if first > last:  # inside one row
        yield from _within_row(last, cut_run(shape[1:], start - last * row, stop - last * row))
        return
    if start < first * row:
        yield from _within_row(first - 1, cut_run(shape[1:], start - (first - 1) * row, row))
    if first < last:
        yield (first,) + (0,) * (len(shape) - 1), (last - first, *shape[1:])
    if last * row < stop:
        yield from _within_row(last, cut_run(shape[1:], 0, stop - last * row))


def _within_row(
    row: int, blocks: Iterator[tuple[tuple[int, ...], tuple[int, ...]]]
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    for starts, shape in blocks:
        yield (row, *starts), (1, *shape)


def describe_block(starts: Sequence[int], shape: Sequence[int]) -> str:
    """Return a block as `[0:16, 8:24]`. Local."""
    return "[" + ", ".join(f"{start}:{start + length}" for start, length in zip(starts, shape, strict=True)) + "]"


def cut_block(
    starts: tuple[int, ...], array: NDArray[Any], limit_nbytes: int, dim: int = 0
) -> Iterator[tuple[tuple[int, ...], NDArray[Any]]]:
    """Yield row ranges of a block, then ranges of later dims where a single row is too large; none of an empty block. Local.

    Args:
        starts: where the block begins.
        array: the block.
        limit_nbytes: of a piece.
        dim: the first dim to cut.
    """
    if array.nbytes <= limit_nbytes or dim == array.ndim:
        if array.size:
            yield starts, array
        return
    length = array.shape[dim]
    step = max(1, limit_nbytes * length // array.nbytes)
    for start in range(0, length, step):
        piece = array[(slice(None),) * dim + (slice(start, start + step),)]
        yield from cut_block((*starts[:dim], starts[dim] + start, *starts[dim + 1 :]), piece, limit_nbytes, dim + 1)
