"""The factors of the matrices of a flat array, packed so that few sums over ranks bring PowerSGD's step for all of them.

Source: Vogels, Karimireddy, Jaggi, "PowerSGD: practical low-rank gradient compression for distributed optimization",
NeurIPS 2019. A matrix X stands for its sum over ranks; each rank holds a part of the terms, and of the elements any runs. With the
factor Q that the step before left, P = sum of X Q, made orthonormal, then Q = sum of X^T P, and the result is P Q^T. Both sums are
linear in X, so that it does not matter who holds which elements. `powersgd.py` has the steps for one matrix in NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lepton_mpi import native
from lepton_mpi.compress.powersgd import initial_q
from lepton_mpi.errors import CodecError

Run = tuple[int, int]


@dataclass(frozen=True)
class Matrix:
    """A matrix in a flat array.

    Attributes:
        name: of the parameter, which its first factor depends on.
        start: where it begins.
        rows, columns: its shape, row-major.
        keeps_rows: whether the factor that is kept for the next step lies along the rows; else it lies along the columns.
    """

    name: str
    start: int
    rows: int
    columns: int
    keeps_rows: bool = False

    @property
    def stop(self) -> int:
        """Where it ends."""
        return self.start + self.rows * self.columns


class Factors:
    """The factors of some matrices of a flat array, and the ranges beside them that travel exactly.

    A step is: `project`, the sum of `first` over ranks, `project_back`, the sum of `second`, `rebuild`.

    Attributes:
        matrices: the matrices.
        ranges: what of the flat array this rank holds, of matrices and exact ranges.
        first: float32, what is summed first: the factors P, then the exact values.
        second: float32, what is summed next: the factors Q.
    """

    def __init__(self, matrices: Sequence[Matrix], exact: Sequence[Run], runs: Sequence[Run], rank: int, seed: int) -> None:
        """Start from drawn factors. Local.

        Args:
            matrices: the matrices.
            exact: ranges of the flat array that travel exactly.
            runs: ranges of the flat array whose terms this rank adds and whose sums it wants.
            rank: columns of a factor.
            seed: of the first factors, same on all ranks.

        Raises:
            CodecError: the rank is not positive.
        """
        check_rank(rank)
        self.matrices, self._rank = tuple(matrices), rank
        firsts = [m.columns if m.keeps_rows else m.rows for m in matrices]
        seconds = [m.rows if m.keeps_rows else m.columns for m in matrices]
        self._first_of, end = _pack([rank * length for length in firsts], 0)
        self._second_of, second_end = _pack([rank * length for length in seconds], 0)
        exact_of, end = _pack([stop - start for start, stop in exact], end)
        self.first: NDArray[np.float32] = np.zeros(end, np.float32)
        self.second: NDArray[np.float32] = np.zeros(second_end, np.float32)
        self._kept: NDArray[np.float32] = np.zeros(second_end, np.float32)
        self._own = [_overlaps(runs, m.start, m.stop) for m in matrices]
        self._exact = [
            (low, high, here.start + low - start)
            for (start, stop), here in zip(exact, exact_of, strict=True)
            for low, high in _overlaps(runs, start, stop)
        ]
        self.ranges = [run for own in self._own for run in own] + [(low, high) for low, high, _ in self._exact]
        for index, matrix in enumerate(self.matrices):
            self.kept(index)[...] = initial_q(seed, matrix.name, seconds[index], rank).T

    def kept(self, index: int) -> NDArray[np.float32]:
        """Return the factor that a matrix starts its next step from, float32 [rank, rows or columns], as it is kept. Local."""
        return self._kept[self._second_of[index]].reshape(self._rank, -1)

    def state(self) -> NDArray[np.float32]:
        """Return a copy of all factors that the next step starts from, float32 [n]; the same on all ranks. Local."""
        return self._kept.copy()

    def load(self, kept: NDArray[np.float32]) -> None:
        """Start the next step from what `state` returned. Local.

        Raises:
            CodecError: it is of other matrices or another rank.
        """
        if kept.shape != self._kept.shape:
            raise CodecError(f"factors: expected {self._kept.size} values, received shape {kept.shape}; shapes or rank differ")
        self._kept[:] = kept

    def project(self, x: NDArray[np.float32], residual: NDArray[np.float32] | None) -> None:
        """Add what is owed to this rank's ranges of x, and write their part of the first sum. Local.

        Args:
            x: float32, the flat array; changed.
            residual: float32, as long as x, or None.
        """
        if residual is not None:
            for low, high in self.ranges:
                x[low:high] += residual[low:high]
        self.first.fill(0)
        for matrix, own, here, kept in zip(self.matrices, self._own, self._first_of, self._second_of, strict=True):
            for run in own:
                self._project(matrix, x, run, self._kept[kept], self.first[here], matrix.keeps_rows)
        for low, high, at in self._exact:
            self.first[at : at + high - low] = x[low:high]

    def project_back(self, x: NDArray[np.float32]) -> None:
        """Make the summed first factors orthonormal, and write this rank's part of the second sum. Local.

        The same sums give the same bits on all ranks.
        """
        self.second.fill(0)
        for matrix, own, here, to in zip(self.matrices, self._own, self._first_of, self._second_of, strict=True):
            native.orthogonalise(self.first[here], self._rank)
            for run in own:
                self._project(matrix, x, run, self.first[here], self.second[to], not matrix.keeps_rows)

    def _project(
        self,
        matrix: Matrix,
        x: NDArray[np.float32],
        run: Run,
        factor: NDArray[np.float32],
        out: NDArray[np.float32],
        to_columns: bool,
    ) -> None:
        project = native.low_rank_project_columns if to_columns else native.low_rank_project_rows
        low, high = run
        project((matrix.rows, matrix.columns, self._rank), x[low:high], low - matrix.start, factor, out)

    def rebuild(self, x: NDArray[np.float32], residual: NDArray[np.float32] | None, scale: float, part: float) -> None:
        """Write the sums to this rank's ranges of x, and keep what they leave out of its terms. Local.

        With a NaN or an infinity in a factor all of its matrix becomes NaN, and what is owed of it stays as it was.

        Args:
            x: float32, as `project` left it; overwritten.
            residual: float32, as long as x, or None; becomes x minus `part` of the sums.
            scale: factor on the sums.
            part: of the sums, what this rank's terms stand for; over all ranks they add up to 1.
        """
        for matrix, own, first, second in zip(self.matrices, self._own, self._first_of, self._second_of, strict=True):
            finite = bool(np.isfinite(self.second[second]).all())
            if finite:
                self._kept[second] = self.second[second]
            rows, columns = self.first[first], self.second[second]
            if matrix.keeps_rows:
                rows, columns = columns, rows
            shape = (matrix.rows, matrix.columns, self._rank)
            for low, high in own:
                rest = residual[low:high] if residual is not None and finite else None
                native.low_rank_rebuild(shape, x[low:high], low - matrix.start, rows, columns, scale, rest, part)
        for low, high, at in self._exact:
            sums = self.first[at : at + high - low]
            np.multiply(sums, np.float32(scale), out=x[low:high])
            if residual is not None:
                residual[low:high][np.isfinite(sums)] = 0


def check_rank(rank: int) -> None:
    """Refuse what is no rank of factors. Local.

    Raises:
        CodecError: it is not positive.
    """
    if rank < 1:
        raise CodecError(f"rank of powersgd: expected at least 1, received {rank}")


def _pack(sizes: Sequence[int], start: int) -> tuple[list[slice], int]:
    """Return where arrays of these sizes lie one after the other, and where the last one ends."""
    places = []
    for size in sizes:
        places.append(slice(start, start + size))
        start += size
    return places, start


def _overlaps(runs: Sequence[Run], start: int, stop: int) -> list[Run]:
    """Return what of a range lies in the runs."""
    found = [(max(low, start), min(high, stop)) for low, high in runs]
    return [(low, high) for low, high in found if low < high]
