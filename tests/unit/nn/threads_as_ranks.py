"""Places whose ranks are threads of one process, to test layers that talk to other ranks without MPI."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lepton_mpi.nn.move import AddParts, Move, Replicate, Stay
from lepton_mpi.nn.place import Place


class Meeting:
    """Where the threads show each other arrays."""

    def __init__(self, num_ranks: int) -> None:
        self._barrier = threading.Barrier(num_ranks, timeout=20)
        self._arrays: list[Any] = [None] * num_ranks

    def show(self, rank: int, array: np.ndarray) -> list[np.ndarray]:
        """Return the arrays of all ranks."""
        self._arrays[rank] = array.copy()
        self._barrier.wait()
        arrays = list(self._arrays)
        self._barrier.wait()
        return arrays


class Shards(Move):
    """A movement given by what each direction makes of all shards' arrays; None: nothing moves."""

    def __init__(self, meeting: Meeting, shard: int, forward: Callable | None, adjoint: Callable | None) -> None:
        self._show = lambda array: meeting.show(shard, array)
        self._forward = forward
        self._adjoint = adjoint

    def forward(self, x: Any) -> Any:
        return self._forward(self._show(x)) if self._forward else x

    def adjoint(self, dy: Any) -> Any:
        return self._adjoint(self._show(dy)) if self._adjoint else dy


def total(parts: Any) -> Any:
    """Return the sum of what the shards show, a list of one array each."""
    return sum(part for (part,) in parts)


@dataclass(frozen=True)
class ThreadPlace(Place):
    """A rank of one axis: its data ranks, or its shards."""

    meeting: Meeting | None = None
    data_rank: int = 0

    def replicate(self, length: int = 0, unit: int = 1) -> Move:
        return Shards(self.meeting, self.shard, None, total) if self.shards > 1 else Replicate()

    def sum(self, length: int = 0, unit: int = 1) -> Move:
        return Shards(self.meeting, self.shard, total, None) if self.shards > 1 else AddParts()

    def gather(self, length: int, unit: int = 1) -> Move:
        if self.shards == 1:
            return Stay()
        own = slice(*self.share(length, unit))
        return Shards(self.meeting, self.shard, lambda parts: np.concatenate(parts, axis=-1), lambda whole: whole[0][..., own])

    def gather_over_data(self, x: Any, num_rows: int = 0) -> Any:
        assert x.ndim == 2 and x.dtype == np.float64
        return x if self.shards > 1 else np.concatenate(self.meeting.show(self.data_rank, x))


def run_threads(work: Callable[[ThreadPlace], Any], *, data: int = 1, shards: int = 1) -> list[Any]:
    """Return what work(place) returns on each data rank, or on each shard."""
    assert min(data, shards) == 1
    meeting, results = Meeting(data * shards), [None] * (data * shards)

    def run(rank: int) -> None:
        shard, data_rank = (rank, 0) if shards > 1 else (0, rank)
        place = ThreadPlace(shards, shard, data_rank == 0, meeting=meeting, data_rank=data_rank)
        results[rank] = work(place)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(results))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
