"""The sum of gradients over the data axis as products of thin factors between nodes: PowerSGD."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.comm.allreduce_engine import AllReduceEngine
from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.grid import ProcessGrid
from lepton_mpi.compress.low_rank import Factors, Matrix, Run
from lepton_mpi.compress.powersgd import matrix_shape
from lepton_mpi.nn.parameter import ParameterBlock, ParameterLayout
from lepton_mpi.parallel.gradient_exchange import GradientExchange
from lepton_mpi.parallel.node_parameters import NodeParameters
from lepton_mpi.parallel.ownership import part

# A sum of factors starts when so many values of it are there: 256 KiB, long enough that its latency counts little.
_SUM_VALUES = 65536
_CHUNK_MIB, _DEPTH = 0.25, 4


@dataclass
class _Group:
    """Weights whose factors are summed together: those that begin in some buckets, which are done once the lowest one is."""

    lowest_bucket: int
    factors: Factors
    number: int = 0  # of the sum on its way


class PowerSgdExchange(GradientExchange):
    """Sum gradients exactly inside a node, and between nodes the factors of what the ranks of a node own.

    Weights of one dim, and those that would not become shorter, travel exactly, and so do those of which others hold copies.
    Both sums of a step are linear in the gradient, so every rank works on its slices alone, wherever they cut a weight. Every
    rank of the data axis makes the same factors orthonormal, to the same bits, and rebuilds its slices of their product.
    """

    @collective("grid.data")
    def __init__(
        self,
        grid: ProcessGrid,
        memory: NodeParameters,
        timeout_s: float,
        spin: bool,
        progress_thread: str = "auto",
        warmup_mode: str = "bf16",
        *,
        rank: int = 4,
        seed: int = 0,
    ) -> None:
        """Set the exchange up.

        Collective over grid.data.

        Args:
            grid, memory, timeout_s, spin, progress_thread, warmup_mode: see `GradientExchange`.
            rank: columns of the factors.
            seed: of the first factors.

        Raises:
            CodecError: the rank is not positive.
            GridError: a thread must be, but MPI does not admit it.
        """
        super().__init__(
            grid, memory, "exact", timeout_s, spin, progress_thread=progress_thread, warmup_mode=warmup_mode, feedback=True
        )
        self.rank = rank
        ownership = memory.ownership
        self._part = 1.0 / ownership.num_nodes
        self._groups: list[_Group] = []
        self._next_group = 0
        self._sums: AllReduceEngine | None = None
        if ownership.num_nodes > 1:
            bounds = ownership.bounds
            owns = ownership.rank < ownership.num_owners
            buckets = list(pairwise(bounds)) if owns else []
            runs = [part(bucket, ownership.num_owners, ownership.rank) for bucket in buckets]
            self._groups = list(_plan(memory.layout, bounds, runs, rank, seed))
            self._sums = AllReduceEngine(
                grid.data,
                ranks_per_node=0,
                chunk_mib=_CHUNK_MIB,
                depth=_DEPTH,
                timeout_s=timeout_s,
                background=False,
                node=grid.data_in_node,
            )

    @property
    def kept(self) -> dict[str, NDArray[np.float32]]:
        """The factor that each compressed weight starts its next step from, float32 [rank, rows or columns], see `keeps_rows`."""
        return {m.name: group.factors.kept(i) for group in self._groups for i, m in enumerate(group.factors.matrices)}

    def _begin_exchange(self) -> None:
        """Keep in the node what factors stand for, but for steps that are warming."""
        super()._begin_exchange()
        factors_stand_for_it = self._sums is not None and not self.warming
        self._engine.set_in_node_from(self._memory.layout.private_start if factors_stand_for_it else self._bounds[-1])
        self._next_group = len(self._groups) if self.warming else 0

    def start_from(self, offset: int) -> None:
        """Start the buckets of weights that begin at or after an offset of the flat buffer; those must be complete. Local."""
        super().start_from(offset)
        while self._next_group < len(self._groups) and self._engine.done(self._groups[self._next_group].lowest_bucket):
            self._start_group()
        if self._sums is not None:
            self._sums.native.progress()

    def _start_group(self) -> None:
        """Start the first sum of the next group, whose gradients are summed in the node. Local."""
        group = self._groups[self._next_group]
        group.factors.project(self._own_grad, self.residual)
        group.number = self._start_sum(group.factors.first)
        self._next_group += 1

    def _start_sum(self, values: NDArray[np.float32]) -> int:
        assert self._sums is not None
        return self._sums.start(values, values, "exact", None, 1.0)

    @collective("grid.data")
    def finish(self) -> None:
        """Wait until the reduced gradients of the owned slices lie in the own gradient buffer.

        Collective over grid.data.

        Raises:
            StallError: other ranks stayed away too long.
        """
        super().finish()
        if self._sums is None or self.warming:
            return
        while self._next_group < len(self._groups):
            self._start_group()
        for group in self._groups:
            self._sums.native.finish(group.number)
            group.factors.project_back(self._own_grad)
            group.number = self._start_sum(group.factors.second)
        for group in self._groups:
            self._sums.native.finish(group.number)
            group.factors.rebuild(self._own_grad, self.residual, 1.0, self._part)

    @property
    def sent_nbytes(self) -> int:
        """Bytes that this rank has sent to other nodes so far."""
        return super().sent_nbytes + (self._sums.native.sent_nbytes if self._sums is not None else 0)

    @collective("grid.data")
    def free(self) -> None:
        """Give the communicators back.

        Collective over grid.data.
        """
        if self._sums is not None:
            self._sums.free()
        super().free()


def keeps_rows(split_dim: int | None) -> bool:
    """Return whether the factor that a weight keeps lies along its rows: along the dim that shards divide. Local.

    Then the factors of all shards together are one along the whole weight, whatever the number of shards.
    """
    return split_dim == 0


def _plan(layout: ParameterLayout, bounds: Sequence[int], runs: Sequence[Run], rank: int, seed: int) -> Iterator[_Group]:
    """Yield groups of weights in the order in which their gradients become complete: from the end."""
    matrices: list[Matrix] = []
    exact: list[Run] = []
    num_values = 0
    places = [(start, block) for start, block in zip(layout.offsets, layout.blocks, strict=True) if block.size]
    places = [place for place in places if layout.private_start <= place[0] < bounds[-1]]
    for number, (start, block) in enumerate(reversed(places), 1):
        matrix = _matrix(start, block, rank)
        if matrix is None:
            exact.append((start, start + block.size))
            num_values += block.size
        else:
            matrices.append(matrix)
            num_values += rank * (matrix.columns if matrix.keeps_rows else matrix.rows)
        if num_values >= _SUM_VALUES or number == len(places):
            yield _Group(bisect_right(bounds, start) - 1, Factors(matrices, exact, runs, rank, seed))
            matrices, exact, num_values = [], [], 0


def _matrix(start: int, block: ParameterBlock, rank: int) -> Matrix | None:
    """Return the matrix that stands for a block; None for one that travels exactly."""
    shape = matrix_shape(block.shape, rank)
    return None if shape is None else Matrix(block.name, start, *shape, keeps_rows(block.spec.split_dim))
