"""CompressedAllreduce with codec auto: right sums by every way, the same choice on all ranks, and nothing owed is lost."""

from __future__ import annotations

import logging
import re
import time

import numpy as np
import pytest

from lepton_mpi.comm import CompressedAllreduce, pending_sum
from lepton_mpi.comm.machine_probe import Watch
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


@pytest.mark.mpi
@pytest.mark.parametrize("ranks_per_node", [0, 1])
def test_ranks_may_take_the_long_way_at_any_time(comm: MPI.Intracomm, ranks_per_node: int) -> None:
    """Settled sums take a short cut, unless an array must be copied first; ranks must agree on when to ask again."""
    allreduce = CompressedAllreduce(comm, "auto", average=True, ranks_per_node=ranks_per_node, timeout_s=60.0)
    random = np.random.default_rng([3, comm.rank])
    for step in range(1500):
        size = (600, 700, 5000)[step % 3]  # two of one size class, and one of another
        values = np.zeros(2 * size, np.float32)[::2] if random.integers(4) == 0 else np.zeros(size, np.float32)
        values[...] = 1.0 + comm.rank + step % 64
        if step % 50 == 0:
            pending = allreduce.start(values)
            pending.finish()
        elif step % 77 == 0 and comm.rank > 0:
            values = np.empty(size, np.float32)
            allreduce(None, values)
        else:
            allreduce(values)
        zeros = step % 50 != 0 and step % 77 == 0
        expected = (1.0 + step % 64 if zeros else comm.size * (1.0 + step % 64) + comm.size * (comm.size - 1) / 2) / comm.size
        np.testing.assert_allclose(values, expected, rtol=2**-7)
        assert len(set(comm.allgather(allreduce.choice(4 * size)))) == 1
    for _ in range(200):
        allreduce(np.zeros(600, np.float32))
    assert allreduce._engine.native.unsettle(600), "no short cut was ever taken"
    allreduce.free()


@pytest.mark.mpi
def test_ranks_stop_measuring_together(comm: MPI.Intracomm) -> None:
    watch, runs = Watch(comm), []

    def slow_on_the_last() -> None:
        runs.append(comm.rank)
        time.sleep(0.08 if comm.rank == comm.size - 1 else 0.0)

    seconds = watch.slowest(slow_on_the_last, 0.2)
    assert 2 <= len(runs) <= 3
    assert 0.08 <= seconds < 1.0
    watch.slowest(slow_on_the_last, 0.0)  # the time is over, and yet there must be a number
    assert len(set(comm.allgather(len(runs)))) == 1
    assert len(set(comm.allgather(seconds))) == 1
    many = []
    watch.slowest(lambda: many.append(1), 1e9)
    assert len(many) == 6


@pytest.mark.mpi
@pytest.mark.parametrize("ranks_per_node", [0, 1])
def test_measuring_takes_less_than_a_second(comm: MPI.Intracomm, ranks_per_node: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="lepton_mpi")
    allow = ("exact", "bf16", "fp16", "int8", "int4", "sign1")
    for _ in range(3):  # other work of the machine may disturb one of them
        CompressedAllreduce(comm, "auto", allow=allow, ranks_per_node=ranks_per_node).free()
    if comm.rank == 0:
        taken = [float(found) for found in re.findall(r"measured MPI, nodes, links and codecs in ([0-9.]+) s", caplog.text)]
        assert len(taken) == 3
        assert min(taken) < 1.0


@pytest.mark.mpi
def test_plain_sums_longer_than_mpi_counts_go_in_parts(comm: MPI.Intracomm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending_sum, "_LONGEST_PLAIN", 1000)
    auto = CompressedAllreduce(comm, "auto", allow=(), feedback=True)
    for size in (999, 1000, 1001, 3500):
        expected = np.arange(size, dtype=np.float32) * comm.size + comm.size * (comm.size - 1) / 2
        values = np.arange(size, dtype=np.float32) + comm.rank
        auto(values, name=str(size))
        np.testing.assert_array_equal(values, expected)
        values = np.arange(size, dtype=np.float32) + comm.rank
        auto.start(values, name=str(size)).finish()
        np.testing.assert_array_equal(values, expected)
    auto.free()
