"""Sum of squares in double precision, behind gradient norms."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import numpy as np

from lepton_mpi import native
from lepton_mpi.ops.array_module import Array, array_module
from lepton_mpi.ops.checks import check_slices

NUM_LANES = 16


def sum_of_squares(x: Array) -> float:
    """Return the sum of the squares of a slice, in double precision. Local.

    On the CPU the order of additions is fixed (see `sum_of_squares_reference`), so the result
    depends on the values alone; on a GPU the order is that of CuPy's reduction.

    Args:
        x: float32 [n]; read only.

    Raises:
        ValueError: dtype, shape or layout does not fit.
    """
    check_slices(x=x)
    if array_module(x) is np:
        return native.sum_of_squares(x)
    return float(_cuda_reduction()(x))


@functools.cache
def _cuda_reduction() -> Any:
    """Return CuPy's reduction for it, which needs no array of doubles."""
    cupy = importlib.import_module("cupy")
    return cupy.ReductionKernel("float32 x", "float64 y", "(double)x * (double)x", "a + b", "y = a", "0", "sum_of_squares")


def sum_of_squares_reference(x: Array) -> float:
    """Return what the CPU kernel returns, bit for bit, in NumPy. Local.

    Element i goes to lane i % 16, each lane sums in order, and the lanes are added pairwise.
    """
    num_rows = -(-x.size // NUM_LANES)
    squares = np.zeros((num_rows + 1, NUM_LANES))
    squares.reshape(-1)[NUM_LANES:][: x.size] = np.square(x.astype(np.float64))
    lanes = np.add.accumulate(squares, axis=0)[-1]
    while lanes.size > 1:
        lanes = lanes[: lanes.size // 2] + lanes[lanes.size // 2 :]
    return float(lanes[0])
