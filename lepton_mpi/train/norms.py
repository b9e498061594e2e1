"""Norms of arrays that many ranks hold parts of."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lepton_mpi import native
from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.reduction import sum_in_rank_order
from lepton_mpi.comm.waiting import wait
from lepton_mpi.ops.sum_of_squares import sum_of_squares
from lepton_mpi.runtime.mpi import MPI

# Sums of multiples of a unit are exact in float64 below 2^52 units, with one bit left for the rounding.
_EXACT_BITS = 52
_LEAST_EXPONENT = -900


@collective("world")
def norms_of_parts(
    world: MPI.Intracomm, parts: Sequence[tuple[int, NDArray[np.float32]]], sizes: Sequence[int], exact: bool
) -> NDArray[np.float64]:
    """Return the norms of several arrays, with equal bits on all ranks.

    Collective over world. One message, or two if exact.

    Args:
        world: all ranks.
        parts: what this rank counts: number of an array, and some of its values, float32 [n]. Each value counts on one rank.
        sizes: number of values of every array.
        exact: whether the bits must not depend on how the arrays are cut; with another grid they differ by rounding else.
    """
    if exact:
        return _exact_norms(world, parts, sizes)
    squares = np.zeros(len(sizes))
    for i, values in parts:
        squares[i] += sum_of_squares(values)
    norms: NDArray[np.float64] = np.sqrt(sum_in_rank_order(world, squares))
    return norms


@collective("world")
def _exact_norms(
    world: MPI.Intracomm, parts: Sequence[tuple[int, NDArray[np.float32]]], sizes: Sequence[int]
) -> NDArray[np.float64]:
    """Return the norms from sums of squares in two parts that are added exactly. Collective over world.

    The units follow from the largest magnitude of each array. An array with an infinity or NaN has an infinite norm.
    """
    largest = np.zeros(len(sizes), np.float32)
    for i, values in parts:
        largest[i] = np.maximum(largest[i], native.largest_magnitude(values))
    # As bits, magnitudes compare as they should: NaN above infinity above all numbers.
    wait(world.Iallreduce(MPI.IN_PLACE, largest.view(np.uint32), MPI.MAX), "the largest values of parameters")
    finite = np.isfinite(largest)
    sums = np.zeros((2, len(sizes)))
    for i, values in parts:
        if finite[i]:
            sums[:, i] += native.exact_squares(values, *_units(float(largest[i]), sizes[i]))
    high, low = sum_in_rank_order(world, sums)
    return np.where(finite, np.sqrt(high + low), np.inf)


def _units(largest: float, size: int) -> tuple[float, float]:
    """Return the unit of squares up to largest^2, and that of what rounding to it leaves. Local, pure."""
    count_bits = size.bit_length()
    high = max(2 * math.frexp(largest)[1] + count_bits - _EXACT_BITS, _LEAST_EXPONENT)
    return math.ldexp(1.0, high), math.ldexp(1.0, high + count_bits - _EXACT_BITS)
