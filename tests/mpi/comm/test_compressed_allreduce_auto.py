"""CompressedAllreduce with codec auto: right sums by every way, the same choice on all ranks, and nothing owed is lost."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from lepton_mpi.comm import CompressedAllreduce
from lepton_mpi.errors import CodecError
from lepton_mpi.runtime.mpi import MPI


@pytest.mark.mpi
@pytest.mark.parametrize("ranks_per_node", [0, 1])
def test_auto_tries_ways_and_all_sums_are_right(comm: MPI.Intracomm, ranks_per_node: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="lepton_mpi")
    allreduce = CompressedAllreduce(comm, "auto", allow=("exact", "bf16"), ranks_per_node=ranks_per_node, timeout_s=60.0)
    for size in (100, 50_000):
        for step in range(40):
            values = np.full(size, 1.0 + comm.rank + step, np.float32)  # few bits: exact in every way
            if step % 2:
                allreduce(values)
            else:
                pending = allreduce.start(values)
                allreduce.progress()
                while not pending.done():
                    pass
                pending.finish()
            expected = comm.size * (1.0 + step) + comm.size * (comm.size - 1) / 2
            assert np.abs(values - expected).max() <= expected * 2**-7
        assert len(set(comm.allgather(allreduce.choice(4 * size)))) == 1
        assert allreduce.choice(4 * size) in ("plain", "exact", "bf16")
    assert ("begins with" in caplog.text) == (comm.rank == 0)
    allreduce.free()


@pytest.mark.mpi
def test_plain_sums_pay_what_is_owed(comm: MPI.Intracomm) -> None:
    size, lossy = 5003, CompressedAllreduce(comm, "sign1", ranks_per_node=1)
    draw = [np.random.default_rng([rank]).uniform(-1, 1, size).astype(np.float32) for rank in range(comm.size)]
    first, exact = draw[comm.rank].copy(), np.sum(draw, axis=0, dtype=np.float64)
    lossy(first, name="w")
    auto = CompressedAllreduce(comm, "auto", allow=(), feedback=True, ranks_per_node=1)  # nothing but plain is left
    auto.load_feedback_state(lossy.feedback_state())
    second, third = draw[comm.rank].copy(), np.empty(size, np.float32)
    auto(second, name="w")
    np.testing.assert_allclose(first.astype(np.float64) + second, 2 * exact, atol=1e-4)
    assert not auto.feedback_state()["w"].any()
    auto(draw[comm.rank] if comm.rank else None, third, name="w")
    np.testing.assert_allclose(third, exact - draw[0], atol=1e-4)
    assert auto.choice(4 * size) == "plain"
    for engine in (lossy, auto):
        engine.free()


@pytest.mark.mpi
def test_auto_refuses_unknown_codecs(comm: MPI.Intracomm) -> None:
    with pytest.raises(CodecError, match="received 'int7'"):
        CompressedAllreduce(comm, "auto", allow=("exact", "int7"))
