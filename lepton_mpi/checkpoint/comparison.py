"""Compare two checkpoints tensor by tensor, in pieces, whatever grids wrote them.

Dims: every piece is some rows of a tensor, flat: N elements in C order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.checkpoint.layout import TensorInfo, cut_run
from lepton_mpi.checkpoint.reader import CheckpointReader

# Of each of the two tensors; float64 copies of it take up to eight times as much for a moment.
PIECE_NBYTES = 4 * 2**20


@final
@dataclass(frozen=True)
class Difference:
    """How a tensor of two checkpoints differs.

    Elements are compared by their bits: a NaN equals itself, and 0.0 differs from -0.0, by nothing.

    Attributes:
        path: the tensor.
        first: its shape and dtype in the first checkpoint; None: it is only in the second.
        second: the same the other way round.
        num_different: elements whose bits differ; 0 where shapes or dtypes differ, as nothing is compared then.
        index: where the first one lies, in C order.
        values: that element in the first and in the second checkpoint.
        largest_absolute: largest absolute difference; NaN if a NaN takes part.
        largest_relative: largest difference over the larger of the two magnitudes; NaN if a NaN or an infinity takes part.
    """

    path: str
    first: TensorInfo | None
    second: TensorInfo | None
    num_different: int = 0
    index: tuple[int, ...] = ()
    values: tuple[Any, Any] = (None, None)
    largest_absolute: float = 0.0
    largest_relative: float = 0.0

    @property
    def is_comparable(self) -> bool:
        """Whether both checkpoints have the tensor, in one shape and dtype."""
        return self.first is not None and self.first == self.second


@final
@dataclass(frozen=True)
class Comparison:
    """What differs between two checkpoints.

    Attributes:
        num_equal: tensors whose bits are equal.
        differences: the others, sorted by path.
        attributes: `/meta` attributes that differ, with both values; None where one has none.
    """

    num_equal: int
    differences: tuple[Difference, ...]
    attributes: dict[str, tuple[Any, Any]]

    @property
    def is_equal(self) -> bool:
        """Whether all tensors and attributes are equal; one state may have been written by two grids."""
        return not self.differences and not self.attributes.keys() - {"grid"}


# By whom it was written is no part of the state.
_ABOUT_THE_FILE = frozenset(("format_major", "format_minor", "writer"))


def compare_checkpoints(first: CheckpointReader, second: CheckpointReader) -> Comparison:
    """Compare all tensors and attributes of two checkpoints.

    Local; memory does not grow with the tensors.

    Args:
        first: one checkpoint.
        second: the other.

    Raises:
        CheckpointError: one cannot be read.
    """
    paths = sorted(first.tensors.keys() | second.tensors.keys())
    found = (_compare(path, first, second) for path in paths)
    differences = tuple(difference for difference in found if difference is not None)
    names = sorted((first.attributes.keys() | second.attributes.keys()) - _ABOUT_THE_FILE)
    pairs = {name: (first.attributes.get(name), second.attributes.get(name)) for name in names}
    # repr: NaN is equal to itself there, and 1 is not 1.0.
    attributes = {name: pair for name, pair in pairs.items() if repr(pair[0]) != repr(pair[1])}
    return Comparison(len(paths) - len(differences), differences, attributes)


def _compare(path: str, first: CheckpointReader, second: CheckpointReader) -> Difference | None:
    """Compare a tensor piece by piece; None: equal."""
    infos = (first.tensors.get(path), second.tensors.get(path))
    info = infos[0]
    if info is None or infos[0] != infos[1]:
        return Difference(path, *infos)
    index: tuple[int, ...] = ()
    values: tuple[Any, Any] = (None, None)
    count, absolute, relative = 0, 0.0, 0.0
    for starts, shape in _pieces(info):
        a, b = (reader.read(path, starts, shape).reshape(-1) for reader in (first, second))
        different = np.flatnonzero((_bits(a) != _bits(b)).any(axis=1))
        if not different.size:
            continue
        if not count:
            inside = np.unravel_index(int(different[0]), shape)
            index = tuple(start + int(i) for start, i in zip(starts, inside, strict=True))
            values = (a[different[0]].item(), b[different[0]].item())
        count += different.size
        piece = _largest(a[different], b[different])
        absolute, relative = (_larger(old, new) for old, new in zip((absolute, relative), piece, strict=True))
    return Difference(path, *infos, count, index, values, absolute, relative) if count else None


def _bits(array: NDArray[Any]) -> NDArray[np.uint8]:
    return array.view(np.uint8).reshape(array.size, array.dtype.itemsize)


def _largest(a: NDArray[Any], b: NDArray[Any]) -> tuple[float, float]:
    """Return the largest absolute and relative difference of pairs that differ; NaN if there is one."""
    with np.errstate(invalid="ignore", over="ignore"):
        x, y = a.astype(np.float64), b.astype(np.float64)
        # Integers of 64 bits may be equal once rounded to float64; their difference is exact in Python's.
        exact = a.dtype.kind in "iu" and a.dtype.itemsize == 8
        absolute = np.array([abs(int(i) - int(j)) for i, j in zip(a, b, strict=True)], np.float64) if exact else np.abs(x - y)
        scale = np.maximum(np.abs(x), np.abs(y))
        relative = np.divide(absolute, scale, out=np.zeros_like(absolute), where=scale != 0)
    return float(absolute.max()), float(relative.max())


def _larger(a: float, b: float) -> float:
    return math.nan if math.isnan(a) or math.isnan(b) else max(a, b)


def _pieces(info: TensorInfo) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield starts and shapes of blocks that follow each other in C order, each of at most `PIECE_NBYTES`."""
    size, step = math.prod(info.shape), PIECE_NBYTES // info.dtype.itemsize
    for start in range(0, size, step):
        yield from cut_run(info.shape, start, min(start + step, size))
