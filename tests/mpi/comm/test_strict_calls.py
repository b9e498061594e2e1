"""Strict mode: ranks that call the same go on, and all that do not are named, in every order and on every communicator."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

from lepton_mpi.comm.agreement import raise_together
from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.grid import GridShape, ProcessGrid
from lepton_mpi.comm.reduction import sum_in_rank_order
from lepton_mpi.comm.strict.calls import strict, watched
from lepton_mpi.comm.strict.watch import axis_of, checked
from lepton_mpi.comm.waiting import wait
from lepton_mpi.errors import RankMismatchError
from lepton_mpi.runtime.mpi import MPI

# Long beside a message between ranks that outnumber the cores, short beside a test; "1 s" in messages.
LIMIT_S = 0.8
# Where all ranks come.
LONG_S = 60.0


@pytest.fixture(params=[0, 1], ids=["one node", "a node a rank"])
def strict_comm(comm: MPI.Intracomm, request: pytest.FixtureRequest) -> Iterator[MPI.Intracomm]:
    made = strict(comm, "the world", LIMIT_S, request.param)
    yield made
    comm.Barrier()  # unchecked: ranks come here at different times after a mismatch


@pytest.fixture
def calm_comm(comm: MPI.Intracomm) -> MPI.Intracomm:
    return strict(comm, "the world", LONG_S)


@pytest.mark.mpi
def test_results_are_those_of_mpi(calm_comm: MPI.Intracomm) -> None:
    comm, size, rank = calm_comm, calm_comm.size, calm_comm.rank
    own, rows = np.full(3, rank, np.float32), np.empty((size, 3), np.float32)
    everyone = np.repeat(np.arange(size, dtype=np.float32), 3).reshape(size, 3)
    comm.Barrier()
    assert comm.bcast(rank, root=size - 1) == size - 1
    assert comm.allgather(str(rank)) == [str(r) for r in range(size)]
    assert comm.allreduce(rank, op=MPI.MAX) == size - 1
    gathered = comm.gather(rank, root=0)
    assert gathered == (list(range(size)) if rank == 0 else None)
    comm.Allgather(own, rows)
    assert np.array_equal(rows, everyone)
    rows[...] = -1
    wait(comm.Iallgather(own, rows))
    assert np.array_equal(rows, everyone)
    flat, counts = np.empty(size * (size + 1) // 2, np.int64), list(range(1, size + 1))
    wait(comm.Iallgatherv(np.full(rank + 1, rank), [flat, counts, MPI.INT64_T]))
    assert np.array_equal(flat, np.repeat(np.arange(size), counts))
    total = np.array([rank, 1.0])
    wait(comm.Iallreduce(MPI.IN_PLACE, total, MPI.SUM))
    assert total.tolist() == [size * (size - 1) / 2, size]
    whole = np.empty(3, np.float32) if rank == 0 else None
    comm.Reduce(own, whole, MPI.SUM, root=0)
    assert whole is None or whole.tolist() == [size * (size - 1) / 2] * 3
    assert np.array_equal(sum_in_rank_order(comm, own), [size * (size - 1) / 2] * 3)
    long = np.arange(20_000, dtype=np.float32)
    assert np.array_equal(sum_in_rank_order(comm, long), long * size)


@pytest.mark.mpi
def test_messages_are_those_of_mpi(calm_comm: MPI.Intracomm) -> None:
    comm, right, left = calm_comm, (calm_comm.rank + 1) % calm_comm.size, (calm_comm.rank - 1) % calm_comm.size
    large = np.full(100_000, comm.rank, np.float64)
    received = np.empty_like(large)
    request = comm.Isend(large, right, 3)
    wait(comm.Irecv(received, left, 3))
    wait(request)
    assert (received == left).all()
    if comm.rank == 0 < comm.size - 1:
        comm.Send(large, comm.size - 1)
    elif comm.rank == comm.size - 1 > 0:
        status = MPI.Status()
        comm.Recv(received, status=status)
        assert (received == 0).all()
        assert status.Get_source() == 0


@pytest.mark.mpi
def test_what_is_made_of_it_is_checked_too(calm_comm: MPI.Intracomm) -> None:
    grid = ProcessGrid(calm_comm, GridShape(1, 1, calm_comm.size))
    for name in ("world", "data", "model", "stage", "shard", "node", "data_in_node", "data_across"):
        axis = axis_of(getattr(grid, name))
        assert axis is not None
        assert axis.name == f"grid.{name}"
    half = calm_comm.Split(calm_comm.rank % 2, 0)
    assert half.allreduce(1) == (calm_comm.size + 1 - calm_comm.rank % 2) // 2
    none = calm_comm.Split(MPI.UNDEFINED, 0)
    assert none == MPI.COMM_NULL
    half.Free()
    assert axis_of(half) is None
    shard = grid.shard
    grid.free()
    assert axis_of(shard) is None


def disagree(comm: MPI.Intracomm, kind: str) -> None:
    """Let the last rank call something else than the others."""
    odd, three = comm.rank == comm.size - 1, np.zeros(3, np.float32)
    if kind == "name":
        comm.Barrier() if odd else comm.allgather(0)
    elif kind == "count":
        x = np.zeros(4, np.float32) if odd else three
        comm.Iallreduce(MPI.IN_PLACE, x, MPI.SUM)
    elif kind == "dtype":
        x = three.astype(np.float64) if odd else three
        sum_in_rank_order(comm, x)
    elif kind == "root":
        comm.bcast(0, root=comm.size - 1 if odd else 0)
    elif kind == "operation":
        comm.allreduce(0, op=MPI.MAX if odd else MPI.SUM)
    elif odd:
        comm.Barrier()
    else:
        comm.Barrier()


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("kind", ["name", "count", "dtype", "root", "operation", "call site"])
def test_each_difference_is_named_on_all_ranks(comm: MPI.Intracomm, kind: str) -> None:
    made = strict(comm, "the world", LONG_S)
    call = checked(sum_in_rank_order, "comm", "x", False)
    start_s, last = time.monotonic(), comm.size - 1
    with pytest.raises(RankMismatchError) as found:
        if kind == "dtype":  # of an argument of a marked function
            call(made, np.zeros(3, np.float64 if comm.rank == last else np.float32))
        else:
            disagree(made, kind)
    assert time.monotonic() - start_s < LONG_S / 2  # all came, so nobody waited
    text, named = str(found.value), "name" if kind in ("root", "operation") else kind
    assert named in text.split(":")[0]
    odd = last if comm.size > 2 else 1
    assert f"rank {odd} calls" in text
    assert f"{__file__}:" in text
    assert len(set(comm.allgather(text))) == 1
    with pytest.raises(RankMismatchError, match="rank"):  # and nobody waits again
        made.Barrier()
    comm.Barrier()


@pytest.mark.mpi(min_size=2)
def test_a_rank_that_never_comes_is_named(comm: MPI.Intracomm, strict_comm: MPI.Intracomm) -> None:
    absent = strict_comm.size - 1
    strict_comm.Barrier()
    if strict_comm.rank == absent:
        time.sleep(2 * LIMIT_S)
        return
    start_s = time.monotonic()
    with pytest.raises(RankMismatchError) as found:
        strict_comm.allgather(1)
    assert LIMIT_S < time.monotonic() - start_s < 4 * LIMIT_S
    text = str(found.value)
    assert "in allgather over the world at " in text
    assert f"where rank {absent} did not come: rank {absent}" in text
    assert "LEPTON_STRICT_LIMIT_S" in text


@pytest.mark.mpi(min_size=2)
def test_ranks_that_wait_on_different_communicators_are_named(comm: MPI.Intracomm, strict_comm: MPI.Intracomm) -> None:
    other = strict_comm.Dup()
    other.Set_name("grid.other")
    last = strict_comm.size - 1
    with pytest.raises(RankMismatchError) as found:
        if strict_comm.rank == last:
            other.Barrier()
        else:
            strict_comm.allgather(1)
    text = str(found.value)
    assert "did not come: " in text
    if strict_comm.rank == last:
        assert f"rank {last} waited 1 s in Barrier over grid.other" in text
        assert " in allgather over the world at " in text
    else:
        assert "waited 1 s in allgather over the world" in text
        assert f"rank {last} waits for " in text
        assert " s in Barrier over grid.other at " in text


@pytest.mark.mpi(min_size=2)
def test_a_receive_that_nothing_comes_for_names_the_sender(comm: MPI.Intracomm, strict_comm: MPI.Intracomm) -> None:
    last = strict_comm.size - 1
    if strict_comm.rank not in (0, last):
        return
    with pytest.raises(RankMismatchError) as found:
        if strict_comm.rank == 0:
            wait(strict_comm.Irecv(np.empty(5, np.float32), last, 7))
        else:
            strict_comm.Dup()
    text = str(found.value)
    if strict_comm.rank == 0:
        assert f"rank 0 waited 1 s to receive from rank {last}, tag 7 of 5 x float32 over the world at {__file__}:" in text
        assert f"rank {last} waits for " in text
        assert " s in Dup over the world" in text
    else:
        assert "in Dup over the world" in text
        assert f" s in receive from rank {last}, tag 7" in text or strict_comm.size > 2


@pytest.mark.mpi(min_size=2)
def test_a_send_that_nobody_takes_names_the_receiver(comm: MPI.Intracomm) -> None:
    made = strict(comm, "the world", LIMIT_S)
    if comm.rank == 0:
        with pytest.raises(RankMismatchError, match=r"rank 0 waited 1 s to send to rank 1, tag 0 of 5000000 x float64.*: rank 1 "):
            made.Send(np.zeros(5_000_000), 1)  # too large for MPI to take it ahead
    else:
        time.sleep(1.5 * LIMIT_S)
    comm.Barrier()


@pytest.mark.mpi(min_size=2)
def test_long_work_before_an_agreement_is_waited_for(comm: MPI.Intracomm, strict_comm: MPI.Intracomm) -> None:
    patient = checked(raise_together, "comm", "", True)
    if strict_comm.rank == 0:
        time.sleep(1.5 * LIMIT_S)
    patient(strict_comm, None)
    strict_comm.Barrier()


@pytest.mark.mpi(min_size=2)
def test_a_rank_that_waits_elsewhere_is_not_waited_for(comm: MPI.Intracomm, strict_comm: MPI.Intracomm) -> None:
    patient = checked(raise_together, "comm", "", True)
    other = strict_comm.Dup()
    with pytest.raises(RankMismatchError, match="did not come"):
        if strict_comm.rank == 0:
            other.Barrier()
        else:
            patient(strict_comm, None)


@pytest.mark.mpi
def test_without_the_environment_nothing_is_wrapped(comm: MPI.Intracomm) -> None:
    assert watched(comm, "the world") is comm

    @collective("comm")
    def own(comm: MPI.Intracomm) -> int:
        """Collective over comm."""
        return comm.size

    assert not hasattr(own, "__wrapped__")
    assert own(comm) == comm.size
