"""Top-k and PowerSGD inside the trainer, for benchmarks/convergence.py: what ranks add up is what these codecs leave of gradients.

Both work parameter by parameter on the gradient of a rank when it is complete. What the exact exchange then adds up are the
values that a payload of top-k decodes to, or on every rank the same mean that PowerSGD has already agreed on.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lepton_mpi.compress.powersgd import PowerSgd
from lepton_mpi.compress.topk import Topk, decode, max_nbytes, warm_up_share
from lepton_mpi.parallel.gradient_exchange import GradientExchange
from lepton_mpi.runtime.mpi import MPI


class _CompleteExchange(GradientExchange):
    """Compress the gradients of all parameters when the last one is complete."""

    step = 0
    _is_compressed = False

    def start_from(self, offset: int) -> None:
        if offset == 0:
            if not self._is_compressed:
                self._is_compressed = True
                for name, shape, grad in self._gradients():
                    self.compress(name, shape, grad)
            super().start_from(0)

    def publish(self) -> None:
        super().publish()
        self._is_compressed = False
        self.step += 1

    def _gradients(self) -> Iterator[tuple[str, tuple[int, ...], np.ndarray]]:
        layout, own = self._memory.layout, self._memory.grads[self._grid.data_in_node.Get_rank()]
        for block, start in zip(layout.blocks, layout.offsets, strict=True):
            if start < layout.statistics_start:
                yield block.spec.name, block.shape, own[start : start + block.size]

    def compress(self, name: str, shape: tuple[int, ...], grad: np.ndarray) -> None:
        raise NotImplementedError


def topk_exchange(share: float, warm_up_steps: int) -> type[GradientExchange]:
    """Return an exchange by top-k with feedback, whose share falls from a quarter during a warm-up."""

    class TopkExchange(_CompleteExchange):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)
            self._topk = Topk(share)

        def compress(self, name: str, shape: tuple[int, ...], grad: np.ndarray) -> None:
            payload = np.empty(max_nbytes(grad.size), np.uint8)
            sent = self._topk.encode(name, grad.copy(), payload, warm_up_share(share, self.step, warm_up_steps))
            decode(payload[: sent.nbytes], grad)

    return TopkExchange


def powersgd_exchange(rank: int) -> type[GradientExchange]:
    """Return an exchange by PowerSGD with feedback; vectors stay exact."""

    class PowerSgdExchange(_CompleteExchange):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)
            self._powersgd = PowerSgd(rank, seed=0)

        def compress(self, name: str, shape: tuple[int, ...], grad: np.ndarray) -> None:
            matrix = self._powersgd.matrix_shape(shape)
            if matrix is not None:
                p = self._powersgd.begin(name, grad.reshape(matrix))
                q = self._powersgd.project_back(name, self._mean(p))
                grad[:] = self._powersgd.end(name, self._mean(q)).reshape(-1)

        def _mean(self, values: np.ndarray) -> np.ndarray:
            comm = self._grid.data
            total = np.ascontiguousarray(values)
            comm.Allreduce(MPI.IN_PLACE, total, MPI.SUM)
            return comm.bcast(total) / np.float32(comm.Get_size())

    return PowerSgdExchange
