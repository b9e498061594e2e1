"""Error feedback in the C++ gradient exchange: nothing is lost over the steps, and all nodes hold the same bytes."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from numpy.typing import NDArray
from test_exchange_engine import Engine

from lepton_mpi.comm.grid import GridShape, ProcessGrid
from lepton_mpi.compress.modes import codec_number
from lepton_mpi.parallel.gradient_exchange import bucket_bounds
from lepton_mpi.runtime.mpi import MPI

NUM, BOUNDS = 9001, bucket_bounds(9001, 0.008)
CODECS = ("bf16", "fp16", "int8", "int4", "sign1", "topk")


def gradient(rank: int, step: int) -> NDArray[np.float32]:
    return np.random.default_rng([rank, step]).uniform(-1, 1, NUM).astype(np.float32)


def exact_sum(ranks: int, step: int) -> NDArray[np.float64]:
    return np.sum([gradient(rank, step).astype(np.float64) for rank in range(ranks)], axis=0)


@pytest.mark.mpi
@pytest.mark.parametrize("ranks_per_node", (1, 2))
@pytest.mark.parametrize("own_pieces", (False, True))
@pytest.mark.parametrize("codec", CODECS)
def test_sums_and_what_is_owed_make_the_exact_sums(comm: MPI.Intracomm, codec: str, ranks_per_node: int, own_pieces: bool) -> None:
    grid = ProcessGrid(comm, GridShape(comm.size, 1, 1), ranks_per_node)
    residual = np.zeros(NUM, np.float32)
    engine = Engine(grid, codec, BOUNDS, residual=residual, own_pieces=own_pieces)
    engine.native.set_share(0.05)
    sums, exact = np.zeros(NUM), np.zeros(NUM)
    for step in range(5):
        if step == 4:  # what is owed is paid
            engine.native.set_codec(codec_number("exact"))
        engine.own_grad[:] = gradient(comm.rank, step)
        engine.native.finish()
        for here in engine.owned:
            sums[here] += engine.own_grad[here]
        reduced = engine.publish()
        if not own_pieces:  # else every node has its pieces only
            assert len(set(comm.allgather(hashlib.sha256(reduced).digest()))) == 1
        exact += exact_sum(comm.size, step)
    assert not residual.any()
    for here in engine.owned:
        np.testing.assert_allclose(sums[here], exact[here], atol=1e-4 * comm.size)
    grid.free()


@pytest.mark.mpi
def test_a_codec_changes_only_between_steps(comm: MPI.Intracomm) -> None:
    grid = ProcessGrid(comm, GridShape(comm.size, 1, 1), 1)
    engine = Engine(grid, "exact", BOUNDS)
    engine.own_grad[:] = gradient(comm.rank, 0)
    engine.native.start(engine.native.num_buckets - 1)
    with pytest.raises(RuntimeError, match="cannot change within a step"):
        engine.native.set_codec(2)
    with pytest.raises(RuntimeError, match="share cannot change within a step"):
        engine.native.set_share(0.5)
    with pytest.raises(RuntimeError, match="what stays in the node cannot change within a step"):
        engine.native.set_in_node_from(0)
    engine.native.finish()
    np.testing.assert_allclose(engine.publish(), exact_sum(comm.size, 0), atol=1e-5)
    with pytest.raises(ValueError, match="codec"):
        engine.native.set_codec(77)
    with pytest.raises(ValueError, match="expected a share"):
        engine.native.set_share(0.0)
    grid.free()
