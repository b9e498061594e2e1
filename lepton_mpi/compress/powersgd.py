"""PowerSGD: a gradient matrix as the product of two thin ones, by one step of subspace iteration per exchange.

Source: Vogels, Karimireddy, Jaggi, "PowerSGD: practical low-rank gradient compression for distributed optimization",
NeurIPS 2019, algorithms 1 and 2.

Dims: N rows, M columns of a gradient matrix, R rank.

An exchange of one parameter on every rank: `p = project(x, q)`, mean of p over ranks, `p = orthogonalise(p)`,
`q = backproject(x, p)`, mean of q over ranks, gradient = `reconstruct(p, q)`. The means must be exact and have the same
bytes on all ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.compress.feedback import Residuals
from lepton_mpi.errors import CodecError
from lepton_mpi.runtime.random import normal, random_key

# A column that loses all but this share of its length to the earlier ones holds rounding errors only.
_VANISHED = 1e-6


def matrix_shape(shape: tuple[int, ...], rank: int) -> tuple[int, int] | None:
    """Return rows and columns of the matrix that stands for a parameter, or None for one that is to be sent exactly. Local.

    The first dim gives the rows, the others the columns. Parameters of one dim, and those for which the two factors hold
    no fewer values than the matrix, stay exact.
    """
    if len(shape) < 2:
        return None
    rows, columns = shape[0], math.prod(shape[1:])
    return (rows, columns) if rank * (rows + columns) < rows * columns else None


def initial_q(seed: int, name: str, columns: int, rank: int) -> NDArray[np.float32]:
    """Return the first Q of a parameter, normal values that depend on seed and name alone: float32 [M, R]. Local."""
    return normal(random_key(seed, "powersgd", name), 0, columns * rank).reshape(columns, rank)


def project(x: NDArray[np.float32], q: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return P = X Q: float32 [N, R] from [N, M] and [M, R]. Local."""
    return np.asarray(x @ q)


def orthogonalise(p: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return an orthonormal basis of the columns of P by Gram and Schmidt, in float64 and twice. Local.

    A column that depends on the earlier ones is replaced by the first unit vectors that do not, so that a parameter whose
    gradient was zero for a step finds new directions later. Columns beyond the number of rows are zero. Sums run down
    the rows in order, so ranks with the same P get the same bytes, whatever their CPUs.

    Args:
        p: float32 [N, R]; read only. With a NaN or an infinity in it, all of the result is NaN.
    """
    if not np.isfinite(p).all():
        return np.full_like(p, np.nan)
    basis = np.zeros(p.shape, np.float64)
    rows, rank = p.shape
    unit = 0
    for column in range(min(rows, rank)):
        direction = _normalised_rest(p[:, column].astype(np.float64), basis[:, :column])
        while direction is None:
            candidate = np.zeros(rows)
            candidate[unit] = 1
            unit += 1
            direction = _normalised_rest(candidate, basis[:, :column])
        basis[:, column] = direction
    return basis.astype(np.float32)


def backproject(x: NDArray[np.float32], p: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return Q = X^T P: float32 [M, R] from [N, M] and the orthonormal [N, R]. Local."""
    return np.asarray(x.T @ p)


def reconstruct(p: NDArray[np.float32], q: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return P Q^T: float32 [N, M]. Local."""
    return np.asarray(p @ q.T)


class PowerSgd:
    """The residuals and the warm start of one rank; the three steps of an exchange by parameter name."""

    def __init__(self, rank: int, seed: int) -> None:
        """Start with zero residuals. Local.

        Args:
            rank: columns of the factors.
            seed: same on all ranks.

        Raises:
            CodecError: the rank is not positive.
        """
        if rank < 1:
            raise CodecError(f"PowerSGD rank: expected at least 1, received {rank}")
        self.rank = rank
        self.seed = seed
        self.residuals = Residuals()
        self._q: dict[str, NDArray[np.float32]] = {}
        self._x: dict[str, NDArray[np.float32]] = {}
        self._p: dict[str, NDArray[np.float32]] = {}

    def matrix_shape(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """Return `matrix_shape` at this rank. Local."""
        return matrix_shape(shape, self.rank)

    def begin(self, name: str, g: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return this rank's P, whose mean over ranks `project_back` takes. Local.

        Args:
            name: of the parameter.
            g: float32 [N, M], with the shape that `matrix_shape` says.
        """
        x = g + self.residuals.of(name, g.size).reshape(g.shape)
        q = self._q.get(name)
        if q is None:
            q = initial_q(self.seed, name, g.shape[1], self.rank)
        self._x[name] = x
        return project(x, q)

    def project_back(self, name: str, mean_p: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return this rank's Q, whose mean over ranks `end` takes, and keep what the factors leave out. Local.

        With a NaN or an infinity in the mean of P or in Q the residual stays as it was, and the gradient becomes NaN.

        Raises:
            CodecError: `begin` did not precede it.
        """
        x = self._x.pop(name, None)
        if x is None:
            raise CodecError(f"PowerSGD of {name!r}: project_back without begin; call begin with the gradient first")
        p = self._p[name] = orthogonalise(mean_p)
        q = backproject(x, p)
        rest = x - reconstruct(p, q)
        if np.isfinite(rest).all():
            self.residuals.of(name, x.size)[:] = rest.reshape(-1)
        return q

    def end(self, name: str, mean_q: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the mean gradient, float32 [N, M], and keep Q as the next start. Local.

        Raises:
            CodecError: `project_back` did not precede it.
        """
        p = self._p.pop(name, None)
        if p is None:
            raise CodecError(f"PowerSGD of {name!r}: end without project_back; call project_back with the mean of P first")
        if np.isfinite(mean_q).all():
            self._q[name] = mean_q.copy()
        return reconstruct(p, mean_q)

    def warm_starts(self) -> dict[str, NDArray[np.float32]]:
        """Return a copy of the next Q of each parameter, for a checkpoint; the same on all ranks. Local."""
        return {name: q.copy() for name, q in self._q.items()}

    def load_warm_starts(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        """Replace the next Q of all parameters by copies of these. Local."""
        self._q = {name: np.array(q, np.float32) for name, q in state.items()}


def _normalised_rest(vector: NDArray[np.float64], basis: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Return what is left of a vector beside an orthonormal basis, with length 1; None where nothing is."""
    largest = np.abs(vector).max()
    if largest == 0:
        return None
    rest = vector / largest
    length = _length(rest)
    for _ in range(2):  # "twice is enough": Giraud, Langou, Rozloznik, 2005
        for column in basis.T:
            rest = rest - _sum(rest * column) * column
    return rest / _length(rest) if _length(rest) > _VANISHED * length else None


def _sum(terms: NDArray[np.float64]) -> float:
    """Return a sum in the order of the terms; NumPy's own sums and products may order them by the CPU."""
    return float(np.cumsum(terms)[-1])


def _length(vector: NDArray[np.float64]) -> float:
    return math.sqrt(_sum(vector * vector))
