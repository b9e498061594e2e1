"""How large the gradient of each value usually is, so that one scale a block of a codec fits all values of the block.

A block of 4 or 1 bits a value has one scale. Where the values of a block differ in size, the error of the small ones is as large
as the large ones. So while sums still travel in nearly full precision the mean square of every value's gradient is learned. From
then on ranks divide their gradients by its root, relative to that of the block, before they are encoded, and multiply sums by
it. Both are linear, so error feedback goes on as it was; and the factors are powers of two, so that neither rounds. It is what
Adam divides by (Kingma and Ba, 2015), frozen as in 1-bit Adam (Tang et al., 2021), but undone after the exchange: the optimizer
may be any.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.grid import ProcessGrid
from lepton_mpi.comm.waiting import wait
from lepton_mpi.parallel.node_parameters import NodeParameters
from lepton_mpi.parallel.ownership import BLOCK_VALUES, Extent, part
from lepton_mpi.runtime.mpi import MPI

# Decay of the mean squares: about 100 steps count, since gradients shrink while a model learns.
_DECAY = 0.99
# A value whose gradient was smaller than 2^-4 of its block's mean counts as of that size: it may grow later, and would then
# set the scale of the block.
_LEAST_EXPONENT = -4


def relative_scales(squares: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the root mean square of each value over that of its block, as the nearest power of two. Local, pure.

    Args:
        squares: float32 [n], mean squares; blocks of 1024 values count from its start.

    Returns:
        float32 [n], from 1/16 to 32; 1 in blocks that are 0 or not finite.
    """
    if not squares.size:
        return squares.copy()
    starts = np.arange(0, squares.size, BLOCK_VALUES)
    counts = np.diff(starts, append=squares.size)
    means = np.repeat(np.add.reduceat(squares, starts, dtype=np.float64) / counts, counts)
    known = np.isfinite(means) & (means > 0)
    ratios = np.divide(squares, means, out=np.ones(squares.size), where=known)
    # A square in [2^(e - 1), 2^e) has a root within a factor sqrt(2) of 2^floor(e / 2).
    exponents = np.where(ratios > 0, np.frexp(ratios)[1] // 2, _LEAST_EXPONENT)
    scales = np.ldexp(np.float32(1), np.maximum(exponents, _LEAST_EXPONENT))
    return scales.astype(np.float32)


class ValueScales:
    """The mean squares that this rank learns of the values it owns, and the scales of all values.

    Attributes:
        squares: float32, as long as the weights; used at the owned values.
        owned: where the weights lie that this rank owns.
    """

    def __init__(self, grid: ProcessGrid, memory: NodeParameters) -> None:
        """Know nothing yet. Local.

        Args:
            grid: the process grid.
            memory: parameters of this rank.
        """
        self._grid, ownership = grid, memory.ownership
        self._encodes = ownership.num_nodes > 1
        num_values = ownership.bounds[-1]
        self.squares: NDArray[np.float32] = np.zeros(num_values, np.float32)
        self.owned: list[Extent] = [(start, stop) for start, stop in ownership.owned if stop <= num_values]
        # Where every node owns all values, those of the first node speak for all.
        self._speaks = ownership.pieces_differ or grid.is_first_data_node
        self._grad = memory.grads[grid.data_in_node.Get_rank()]
        # Of what others hold copies of sums are exact, whatever the codec.
        self._first = memory.layout.private_start
        buckets = zip(ownership.bounds, ownership.bounds[1:], strict=False)
        owns = ownership.rank < ownership.num_owners
        self._exchanged = [part(bucket, ownership.num_owners, ownership.rank) for bucket in buckets] if owns else []
        self._scales: NDArray[np.float32] | None = None

    def forget_scales(self) -> None:
        """Find the scales anew when they are wanted next: the squares have changed. Local."""
        self._scales = None

    @collective("grid.data")
    def find_scales(self) -> None:
        """Make the scales of all values from the squares that their owners have learned, unless they are known.

        Collective over grid.data. All ranks know them, or none does. Inside one node nothing is encoded, and so nothing scaled.
        """
        if self._scales is not None or not self._encodes:
            return
        scales = np.zeros_like(self.squares)
        if self._speaks:
            for start, stop in self.owned:
                scales[start:stop] = relative_scales(self.squares[start:stop])
        wait(self._grid.data.Iallreduce(MPI.IN_PLACE, scales, MPI.SUM), "the scales of values")  # one term that is not 0
        scales[: self._first] = 1
        self._scales = scales

    def learn(self) -> None:
        """Take note of the sums of gradients of the owned values. Local."""
        for start, stop in self.owned:
            gradient, squares = self._grad[start:stop], self.squares[start:stop]
            squares += np.float32(1 - _DECAY) * (gradient * gradient - squares)
        self._scales = None

    def divide(self, start: int, stop: int) -> None:
        """Divide this rank's gradient of a range by the scales. Local."""
        if self._scales is not None and stop > self._first:
            start = max(start, self._first)
            self._grad[start:stop] /= self._scales[start:stop]

    def divide_residual(self, residual: NDArray[np.float32]) -> None:
        """Bring what is owed to the units of divided gradients. Local.

        Args:
            residual: float32, as long as the weights; the caller's, changed where this rank exchanges.
        """
        for scales, owed in self._pairs(residual):
            owed /= scales

    def multiply(self, residual: NDArray[np.float32] | None) -> None:
        """Bring the sums of the owned values, and what is owed, back to the units of gradients. Local.

        Args:
            residual: see `divide_residual`; None: there is none.
        """
        if self._scales is not None:
            for start, stop in self.owned:
                self._grad[start:stop] *= self._scales[start:stop]
        if residual is not None:
            for scales, owed in self._pairs(residual):
                owed *= scales

    def _pairs(self, residual: NDArray[np.float32]) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        if self._scales is not None:
            for start, stop in self._exchanged:
                yield self._scales[start:stop], residual[start:stop]
