"""Sums of matrices by factors of low rank, PowerSGD, on the exact all-reduce."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.compress.low_rank import Factors, Matrix
from lepton_mpi.compress.powersgd import matrix_shape
from lepton_mpi.errors import CodecError

if TYPE_CHECKING:
    from lepton_mpi.comm.allreduce_engine import AllReduceEngine

Shapes = tuple[tuple[int, ...], ...]


@final
class LowRankSum:
    """A sum on its way: that of the first factors is started, the rest happens in `finish`, in one order on all ranks."""

    def __init__(
        self,
        engine: AllReduceEngine,
        factors: Factors,
        values: NDArray[np.float32],
        residual: NDArray[np.float32] | None,
        scale: float,
    ) -> None:
        """Start. Local, but all ranks must start the same ones in one order.

        Args:
            engine: adds up.
            factors: of the array; used by one sum at a time.
            values: float32 [n], what this rank adds; the sum in the end.
            residual: error feedback, float32 [n], or None.
            scale: of the sum.
        """
        self._engine, self._factors, self._values, self._residual, self._scale = engine, factors, values, residual, scale
        factors.project(values, residual)
        self._number = self._start(factors.first)
        self._has_ended = False

    def _start(self, values: NDArray[np.float32]) -> int:
        return self._engine.start(values, values, "exact", None, 1.0)

    def progress(self) -> None:
        """Move the sum along, without waiting. Local."""
        self._engine.native.progress()

    def finish(self, number: int) -> None:
        """Wait until the sum is in the array; may be called again. All ranks finish their sums in one order."""
        if self._has_ended:
            return
        self._has_ended = True
        self._engine.native.finish(self._number)
        self._factors.project_back(self._values)
        self._engine.native.finish(self._start(self._factors.second))
        self._factors.rebuild(self._values, self._residual, self._scale, 1.0 / self._engine.comm.Get_size())

    def done(self, number: int) -> bool:
        """Return whether `finish` was called: without it nothing ends. Local."""
        return self._has_ended


@dataclass
class _Array:
    """What belongs to a named array."""

    shapes: Shapes
    factors: Factors
    last: LowRankSum | None = None


@final
class LowRankSums:
    """The sums of named arrays, each of which consists of arrays of certain shapes.

    Of arrays of several dims the first dim gives the rows of a matrix, the others its columns. Arrays of one dim, and those that
    would not become shorter, travel exactly.
    """

    def __init__(self, engine: AllReduceEngine, rank: int, scale: float) -> None:
        """Begin without arrays. Local.

        Args:
            engine: adds up.
            rank: columns of a factor.
            scale: of the sums.
        """
        self._engine, self._rank, self._scale = engine, rank, scale
        self._arrays: dict[str, _Array] = {}
        self._loaded: dict[str, NDArray[np.float32]] = {}

    def begin(self, name: str, shapes: Shapes, values: NDArray[np.float32], residual: NDArray[np.float32] | None) -> LowRankSum:
        """Start the sum of an array. Local, but all ranks must start the same ones in one order.

        Args:
            name: of the array.
            shapes: of the arrays that lie in it one after the other.
            values: float32 [n], what this rank adds; the sum in the end.
            residual: error feedback, float32 [n], or None.

        Raises:
            CodecError: the shapes are not those of the values, or not as before, or the last sum of the name is not finished.
        """
        array = self._arrays.get(name)
        if array is None:
            array = self._arrays[name] = _Array(shapes, self._make_factors(name, shapes, values.size))
        if array.shapes != shapes:
            raise CodecError(
                f"array {name!r}: expected shapes {list(array.shapes)}, as before, received {list(shapes)}: factors belong to "
                "one array, so give every array a name of its own"
            )
        if array.last is not None and not array.last.done(0):
            raise CodecError(f"array {name!r}: its last sum is not finished; give every array a name of its own")
        array.last = LowRankSum(self._engine, array.factors, values, residual, self._scale)
        return array.last

    def _make_factors(self, name: str, shapes: Shapes, size: int) -> Factors:
        if sum(math.prod(shape) for shape in shapes) != size:
            raise CodecError(f"array {name!r}: expected shapes of {size} values together, received {list(shapes)}")
        matrices, exact, start = [], [], 0
        for index, shape in enumerate(shapes):
            stop = start + math.prod(shape)
            matrix = matrix_shape(shape, self._rank)
            if matrix is None:
                exact.append((start, stop))
            else:
                matrices.append(Matrix(f"{name} {index}", start, *matrix))
            start = stop
        factors = Factors(matrices, exact, [(0, start)], self._rank, seed=0)
        if name in self._loaded:
            factors.load(self._loaded.pop(name))
        return factors

    def forget(self, name: str) -> None:
        """Drop what is kept of a name. Local."""
        self._arrays.pop(name, None)
        self._loaded.pop(name, None)

    def state(self) -> dict[str, NDArray[np.float32]]:
        """Return the factors that the next sums start from, by name; the same on all ranks. Local."""
        return {name: array.factors.state() for name, array in sorted(self._arrays.items())}

    def load(self, name: str, kept: NDArray[np.float32]) -> None:
        """Take over the factors of a name, also before its array came. Local.

        Raises:
            CodecError: they are of other shapes or another rank.
        """
        if name in self._arrays:
            self._arrays[name].factors.load(kept)
        else:
            self._loaded[name] = np.array(kept, np.float32)
