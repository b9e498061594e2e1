"""Exact sums of gradients: the same bits in whatever order the pieces of a batch are added, and by whomever.

Every rank adds the gradients of its pieces to 64-bit totals. Each term is first rounded to a multiple of a unit, a power of
two of its parameter, so coarse that the sum of all of them stays below 2^52 units: additions are then exact, and exact
additions may be done in any order (Demmel and Nguyen 2013, "Fast reproducible floating-point summation"). How large the
gradients of a step are is only known afterwards, so units follow from the step before. Where that was a bad guess the step's
gradients are made again; what is a bad guess follows from the gradients alone, so all grids do the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi import native
from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.grid import ProcessGrid
from lepton_mpi.comm.node_memory import MemoryPlan, NodeMemory
from lepton_mpi.comm.waiting import wait
from lepton_mpi.nn.parameter import Parameter, ParameterLayout, ParameterSpec
from lepton_mpi.ops.array_module import array_module
from lepton_mpi.parallel.extra_state import ExtraState, StateExtent
from lepton_mpi.runtime.mpi import MPI

# A double holds multiples of its unit up to 2^53; one bit is left for the rounding.
_TOTAL_BITS = 52
# How often a piece may add to one parameter: a tied one is added to once for each of its uses.
_USES_BITS = 3
# A gradient may grow by 2^7 from one step to the next before the step is done again.
_GROWTH_BITS = 7
# And it may shrink until its largest value has only as many bits as an fp32.
_LEAST_BITS = 24


class GradientTotals:
    """The totals of this rank's model part, and those of its neighbours on the node.

    Attributes:
        arrays: float64 [num_values] of every data rank of the node, in memory that they share.
    """

    @collective("grid.data_in_node")
    def __init__(self, grid: ProcessGrid, layout: ParameterLayout, parameters: Sequence[ParameterSpec], num_pieces: int) -> None:
        """Allocate zeroed totals.

        Collective over grid.data_in_node.

        Args:
            grid: the process grid.
            layout: where the parameters of this rank lie.
            parameters: those of the whole model, in the same order on all ranks.
            num_pieces: most pieces of a batch.

        Raises:
            SharedMemoryError: the node has too little shared memory.
        """
        ranks, plan = grid.data_in_node, MemoryPlan()
        starts = [plan.place(8 * layout.num_values) for _ in range(ranks.Get_size())]
        memory = NodeMemory(ranks, plan.nbytes)
        self.arrays: list[NDArray[np.float64]] = [memory.array(start, layout.num_values, np.float64) for start in starts]
        self._own = self.arrays[ranks.Get_rank()]
        self._world = grid.world
        self.names = tuple(spec.name for spec in parameters if spec.role == "weight")
        index = {name: i for i, name in enumerate(self.names)}
        self._places = {
            block.name: (index[block.name], slice(start, start + block.size))
            for block, start in zip(layout.blocks, layout.offsets, strict=True)
            if block.name in index
        }
        self._limit_bits = _TOTAL_BITS - 1 - _USES_BITS - (num_pieces - 1).bit_length()
        num_values = sum(math.prod(spec.shape) for spec in parameters)
        self._count_bits = num_values.bit_length()
        # Units before the first step: those of gradients of at most 1.
        self.exponents: NDArray[np.int64] = np.full(len(self.names), self._exponent(1.0), np.int64)
        self._largest = np.zeros(len(self.names), np.float32)
        self.square_units = (1.0, 1.0)

    def views(self, layout: ParameterLayout) -> list[NDArray[np.float64]]:
        """Return the own totals of each block. Local."""
        return [layout.view(i, self._own) for i in range(len(layout.blocks))]

    def take(self, weights: Sequence[Parameter]) -> None:
        """Add the gradients of weights to the own totals, and set them to zero. Local."""
        for weight in weights:
            i, here = self._places[weight.block.name]
            gradient = weight.grad.reshape(-1)
            host = gradient if array_module(gradient) is np else array_module(gradient).asnumpy(gradient)
            found = native.accumulate_rounded(host, self._own[here], math.ldexp(1.0, int(self.exponents[i])))
            if host is not gradient:
                gradient.fill(0)
            if not found <= self._largest[i]:
                self._largest[i] = found

    @collective("grid.world")
    def settle(self) -> bool:
        """Return whether the units of this step fitted its gradients, and choose those of the next pass by them.

        Collective over grid.world, once all pieces are added. NaN or infinity fit: they are found elsewhere.
        """
        # As bits, magnitudes compare as they should: NaN above infinity above all numbers.
        largest = self._largest.view(np.uint32)
        wait(self._world.Iallreduce(MPI.IN_PLACE, largest, MPI.MAX), "the largest gradients")
        found, self._largest = self._largest, np.zeros_like(self._largest)
        if not np.isfinite(found).all():
            return True
        fits = True
        for i, value in enumerate(map(float, found)):
            if value == 0.0:
                continue
            exponent = int(self.exponents[i])
            fits &= math.ldexp(1.0, exponent + _LEAST_BITS) <= value <= math.ldexp(1.0, exponent + self._limit_bits)
            self.exponents[i] = self._exponent(value)
        self.square_units = self._square_units(float(found.max(initial=0.0)))
        return fits

    def _exponent(self, largest: float) -> int:
        """Return the exponent of the unit for gradients of a piece up to `largest`, with room to grow."""
        return max(math.frexp(largest)[1] + _GROWTH_BITS - self._limit_bits, -1000)

    def _square_units(self, largest: float) -> tuple[float, float]:
        """Return the units in which squares of sums are added exactly over the whole model, and what is left by them."""
        bits = 2 * (math.frexp(largest)[1] + _TOTAL_BITS - 1 - self._limit_bits) if largest else 0
        high = max(bits + self._count_bits - _TOTAL_BITS, -900)
        return math.ldexp(1.0, high), math.ldexp(1.0, high + self._count_bits - _TOTAL_BITS)

    def squares(self, x: Any) -> tuple[float, float]:
        """Return the sum of squares of sums of gradients in two parts, each of which adds exactly over slices and ranks. Local.

        Args:
            x: float32 [n], of the gradients of the last step that was settled.
        """
        return native.exact_squares(x, *self.square_units)


@final
class GradientUnits(ExtraState):
    """The units of exact sums as checkpoint state: the bits of the next step depend on them."""

    group = "gradient_units"
    _NAME = "exponents"

    def __init__(self, totals: GradientTotals, is_writer: bool) -> None:
        """Note whose units they are. Local.

        Args:
            totals: has the units, the same on all ranks.
            is_writer: whether this rank writes them.
        """
        self._totals, self._is_writer = totals, is_writer
        self._found: NDArray[np.float32] = np.zeros(len(totals.names), np.float32)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of the only array: one exponent a weight, in the order of the model. Local."""
        return {self._NAME: (len(self._totals.names),)}

    @collective("grid.world")
    def extents_to_save(self) -> Sequence[StateExtent]:
        """Return the exponents on the rank that writes them, nothing elsewhere.

        Collective over grid.world. No message is sent.
        """
        return [StateExtent(self._NAME, (0,), self._totals.exponents.astype(np.float32))] if self._is_writer else []

    def extents_to_load(self) -> Sequence[StateExtent]:
        """Return all of them. Local."""
        return [StateExtent(self._NAME, (0,), self._found)]

    @collective("grid.world")
    def loaded(self, found: bool) -> None:
        """Take over the units; without any in the checkpoint the first step finds its own.

        Collective over grid.world. No message is sent.
        """
        if found:
            self._totals.exponents[:] = self._found.astype(np.int64)
