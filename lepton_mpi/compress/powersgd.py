"""PowerSGD: a gradient matrix as the product of two thin ones, by one step of subspace iteration per exchange.

Source: Vogels, Karimireddy, Jaggi, "PowerSGD: practical low-rank gradient compression for distributed optimization",
NeurIPS 2019, algorithms 1 and 2.

Dims: N rows, M columns of a gradient matrix, R rank.

A step for one parameter: the sum of `project(x, q)` over ranks, `p = orthogonalise(sum)`, the sum of `backproject(x, p)`, and the
result is `reconstruct(p, q)`. The functions on arrays specify what the C++ kernels do, which `low_rank.py` calls.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

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
