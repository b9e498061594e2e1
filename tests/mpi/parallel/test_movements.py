"""Adjoint tests <F x, y> = <x, F* y> of everything that moves data between ranks.

The inner product follows from how a vector lies on the ranks: of a replicated one each rank holds all of it, so it
counts on one rank; of a divided one, each rank holds other elements, so the ranks' products add up. One vector a
rank (the copies that a gradient comes back from, the terms of a sum) is a vector of the product space: they add up too.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from lepton_mpi.comm.grid import GridShape, ProcessGrid
from lepton_mpi.nn.move import AddParts, Move, Replicate, Stay
from lepton_mpi.parallel.exchange_reference import exchange_reference
from lepton_mpi.parallel.grid_place import place_on
from lepton_mpi.parallel.shard_moves import GatherFromShards, ReplicateToShards, SumOverShards
from lepton_mpi.parallel.stage_mail import StageMail
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.runtime.ranges import split_range

BATCH, FEATURES = 6, 11
TOLERANCE = 1e-12  # of float64, relative


def draw(comm: MPI.Intracomm, shape: tuple[int, int], replicated: bool) -> NDArray[np.float64]:
    """Return random numbers, the same on all ranks or others on each."""
    return np.random.default_rng(7 if replicated else [8, comm.rank]).standard_normal(shape)


def inner(comm: MPI.Intracomm, a: NDArray[np.float64], b: NDArray[np.float64], replicated: bool) -> float:
    if replicated:
        assert len(set(comm.allgather((a.tobytes(), b.tobytes())))) == 1  # it is what it says
        return float((a * b).sum())
    return float(comm.allreduce((a * b).sum()))


def check_adjoint(
    comm: MPI.Intracomm, move: Move, x: NDArray[np.float64], y: NDArray[np.float64], *, x_replicated: bool, y_replicated: bool
) -> None:
    left = inner(comm, move.forward(x), y, y_replicated)
    right = inner(comm, x, move.adjoint(y), x_replicated)
    assert left == pytest.approx(right, rel=TOLERANCE)
    assert abs(left) > 1e-3  # not the adjoint of nothing


@pytest.mark.mpi
def test_replicate_to_shards(comm: MPI.Intracomm) -> None:
    x, y = draw(comm, (BATCH, FEATURES), True), draw(comm, (BATCH, FEATURES), False)
    move = ReplicateToShards(comm, comm.size)
    left, right = inner(comm, move.forward(x), y, False), inner(comm, x, move.adjoint([y]), True)
    assert left == pytest.approx(right, rel=TOLERANCE) and abs(left) > 1e-3


@pytest.mark.mpi
def test_sum_over_shards(comm: MPI.Intracomm) -> None:
    x, y = draw(comm, (BATCH, FEATURES), False), draw(comm, (BATCH, FEATURES), True)
    move = SumOverShards(comm, comm.size)
    left, right = inner(comm, move.forward([x]), y, True), inner(comm, x, move.adjoint(y), False)
    assert left == pytest.approx(right, rel=TOLERANCE) and abs(left) > 1e-3


@pytest.mark.mpi
@pytest.mark.parametrize("features", [4, FEATURES])
def test_gather_from_shards(comm: MPI.Intracomm, features: int) -> None:
    start, stop = split_range(features, comm.size, comm.rank)
    x, y = draw(comm, (BATCH, stop - start), False), draw(comm, (BATCH, features), True)
    check_adjoint(comm, GatherFromShards(comm, features), x, y, x_replicated=False, y_replicated=True)


@pytest.mark.mpi
def test_the_sum_of_gradients_is_the_adjoint_of_the_copies_of_the_weights(comm: MPI.Intracomm) -> None:
    grid = ProcessGrid(comm, GridShape(comm.size, 1, 1))
    weights, grads = draw(comm, (1, 500), True).ravel(), draw(comm, (1, 500), False).ravel()
    total = exchange_reference(grid, grads.astype(np.float32), "exact", [0, 500])
    left = inner(comm, weights, grads.astype(np.float32).astype(float), False)
    assert left == pytest.approx(inner(comm, weights, total.astype(float), True), rel=1e-5)  # summed in float32
    grid.free()


@pytest.mark.mpi
def test_activations_there_and_gradients_back(comm: MPI.Intracomm) -> None:
    """The pipeline's messages shift micro-batches by one stage; gradients shift back."""
    stage, last = comm.rank, comm.size - 1
    mail, there_tag, back_tag = StageMail(comm), 2, 3
    shape = (BATCH, FEATURES)
    micro_batches = range(3)
    x = [np.float32(draw(comm, shape, False) + m) for m in micro_batches]
    y = [np.float32(draw(comm, shape, False) - m) for m in micro_batches]
    zero = np.zeros(shape, np.float32)
    for m in micro_batches:
        if stage < last:
            mail.send(x[m], stage + 1, there_tag)
        if stage > 0:
            mail.send(y[m], stage - 1, back_tag)
        if stage > 0:
            mail.post(BATCH, (shape[1:],), stage - 1, there_tag)
        if stage < last:
            mail.post(BATCH, (shape[1:],), stage + 1, back_tag)
    there = [mail.receive(stage - 1, there_tag, np) if stage > 0 else zero for _ in micro_batches]
    back = [mail.receive(stage + 1, back_tag, np) if stage < last else zero for _ in micro_batches]
    mail.flush()
    for m in micro_batches:
        left = comm.allreduce((there[m].astype(float) * y[m]).sum())
        assert left == pytest.approx(comm.allreduce((x[m].astype(float) * back[m]).sum()), rel=TOLERANCE)
    if stage > 0:
        previous = np.float32(np.random.default_rng([8, stage - 1]).standard_normal(shape) + 2)
        assert there[2].tobytes() == previous.tobytes()


@pytest.mark.mpi
@pytest.mark.parametrize("unit", [1, 3])
def test_gather_of_whole_units_in_more_dims(comm: MPI.Intracomm, unit: int) -> None:
    length = 5 * unit
    first, last = (unit * bound for bound in split_range(5, comm.size, comm.rank))
    random = np.random.default_rng([8, comm.rank])
    x, y = random.standard_normal((2, 3, last - first)), np.random.default_rng(7).standard_normal((2, 3, length))
    check_adjoint(comm, GatherFromShards(comm, length, unit), x, y, x_replicated=False, y_replicated=True)


@pytest.mark.mpi
def test_the_moves_of_a_place(comm: MPI.Intracomm) -> None:
    """A place gives identities where nothing is divided; what all data ranks hold comes in rank order."""
    shards, data = ProcessGrid(comm, GridShape(1, 1, comm.size)), ProcessGrid(comm, GridShape(comm.size, 1, 1))
    many = comm.size > 1
    place = place_on(shards, 3, "fp32")
    assert (place.shards, place.shard, place.is_first_data, place.seed) == (comm.size, comm.rank, True, 3)
    assert type(place.replicate()) is (ReplicateToShards if many else Replicate)
    assert type(place.sum()) is (SumOverShards if many else AddParts)
    assert type(place.gather(4)) is (GatherFromShards if many else Stay)
    assert place.gather_over_data(np.array([[5.0]])).tolist() == [[5.0]]
    place = place_on(data, 3, "fp32")
    assert [type(move) for move in (place.replicate(), place.sum(), place.gather(4))] == [Replicate, AddParts, Stay]
    assert place.is_first_data == (comm.rank == 0)
    rows = place.gather_over_data(np.array([[comm.rank, 7.0]]))
    assert rows.tolist() == [[rank, 7.0] for rank in range(comm.size)]
    shards.free()
    data.free()
