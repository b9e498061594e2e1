"""CompressedAllreduce with powersgd: equal bytes, low ranks exactly, nothing lost over steps, state, odd shapes, NaN."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lepton_mpi.comm import CompressedAllreduce
from lepton_mpi.errors import CodecError
from lepton_mpi.runtime.mpi import MPI

RANKS_PER_NODE = (0, 1, 2, 3)
SHAPES = ((), (1,), (7,), (0, 5), (1, 1), (31, 17), (24, 3, 3, 5), (130, 70), (2, 301))

Make = Callable[..., CompressedAllreduce]


@pytest.fixture
def make(comm: MPI.Intracomm) -> Iterator[Make]:
    made: list[CompressedAllreduce] = []

    def allreduce(**options: Any) -> CompressedAllreduce:
        made.append(CompressedAllreduce(comm, "powersgd", **{"rank": 2, "timeout_s": 60.0, **options}))
        return made[-1]

    yield allreduce
    for engine in made:
        engine.free()


def normal(*shape: int, seed: Any = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def same_on_all(comm: MPI.Intracomm, array: NDArray[np.float32]) -> bool:
    return len(set(comm.allgather(hashlib.sha256(array.tobytes()).digest()))) == 1


@pytest.mark.mpi
@pytest.mark.parametrize("ranks_per_node", RANKS_PER_NODE)
def test_sums_and_what_is_owed_make_the_exact_sums(comm: MPI.Intracomm, make: Make, ranks_per_node: int) -> None:
    allreduce = make(ranks_per_node=ranks_per_node)
    sums = [np.zeros(shape) for shape in SHAPES]
    exact = [np.zeros(shape) for shape in SHAPES]
    for step in range(5):
        for number, shape in enumerate(SHAPES):
            values = normal(*shape, seed=[comm.rank, step, number])
            allreduce(values, name=str(number))
            assert same_on_all(comm, values), shape
            sums[number] += values
            exact[number] += np.sum([normal(*shape, seed=[r, step, number]) for r in range(comm.size)], axis=0, dtype=np.float64)
    owed = allreduce.feedback_state()
    for number, shape in enumerate(SHAPES):
        np.testing.assert_allclose(sums[number] + owed[str(number)].reshape(shape), exact[number], atol=2e-4 * comm.size)
    compressed = np.abs(sums[7] - exact[7]).max() > 0.1
    assert compressed == (allreduce.num_nodes > 1)
    for number in (0, 1, 2, 4):  # vectors, and matrices that would not become shorter
        np.testing.assert_allclose(sums[number], exact[number], atol=1e-5 * comm.size)


@pytest.mark.mpi
@pytest.mark.parametrize("average", [False, True])
def test_a_sum_of_low_rank_is_found_within_two_steps(comm: MPI.Intracomm, make: Make, average: bool) -> None:
    allreduce = make(ranks_per_node=1, feedback=False, average=average)
    low = normal(40, 2, seed=1) @ normal(2, 50, seed=2)
    for _ in range(2):
        values = low * np.float32(comm.rank + 1)
        allreduce(values)
    total = comm.size * (comm.size + 1) / 2
    np.testing.assert_allclose(values, low * (total / comm.size if average else total), atol=1e-4 * total)


@pytest.mark.mpi
def test_bytes_sent_are_those_of_the_factors(comm: MPI.Intracomm, make: Make) -> None:
    allreduce, nodes = make(ranks_per_node=1, rank=4), comm.size
    allreduce(normal(512, 1024, seed=comm.rank))
    sent = comm.allreduce(allreduce.sent_nbytes)
    assert sent == 2 * (nodes - 1) * 4 * 4 * (512 + 1024)


@pytest.mark.mpi
@pytest.mark.parametrize("ranks_per_node", [1, 2])
def test_several_arrays_in_one_and_sums_finished_in_order(comm: MPI.Intracomm, make: Make, ranks_per_node: int) -> None:
    packed, single = make(ranks_per_node=ranks_per_node), make(ranks_per_node=ranks_per_node)
    shapes = [(30, 20), (7,), (12, 40)]
    for step in range(3):
        arrays = [normal(*shape, seed=[comm.rank, step]) for shape in shapes]
        flat = np.concatenate([array.reshape(-1) for array in arrays])
        exact = comm.allreduce(flat.astype(np.float64))
        first = packed.start(flat, name="flat", shapes=shapes)
        second = packed.start(arrays[0].copy(), name="other")
        assert not first.done() or packed.num_nodes == 1
        first.finish()
        second.finish()
        first.finish()
        assert first.done()
        assert same_on_all(comm, flat)
        np.testing.assert_allclose(flat[600:607], exact[600:607], atol=1e-5 * comm.size)
        single(arrays[0], name="flat")
        # A sum in company is the one that it would be alone: the first array has the same drawn factor here.
        expected = single.feedback_state()["flat"]
        np.testing.assert_allclose(packed.feedback_state()["flat"][:600].reshape(-1), expected.reshape(-1), atol=1e-4 * comm.size)


@pytest.mark.mpi
@pytest.mark.parametrize("absent", [0, -1])
def test_a_rank_without_an_array_adds_zeros(comm: MPI.Intracomm, make: Make, absent: int) -> None:
    allreduce, absent = make(ranks_per_node=1), absent % comm.size
    low = normal(40, 1, seed=1) @ normal(1, 50, seed=2)
    out = np.full_like(low, np.nan)
    allreduce(None if comm.rank == absent else low.copy(), out)
    assert same_on_all(comm, out)
    np.testing.assert_allclose(out, low * (comm.size - 1), atol=1e-4 * comm.size)


@pytest.mark.mpi
def test_layouts_of_memory(comm: MPI.Intracomm, make: Make) -> None:
    allreduce = make(ranks_per_node=1, feedback=False)
    low = normal(40, 2, seed=1) @ normal(2, 50, seed=2)
    strided = np.zeros((40, 100), np.float32)
    strided[:, ::2] = low
    arrays = [low.copy(), np.asfortranarray(low), strided[:, ::2]]
    for number, array in enumerate(arrays):
        allreduce(array, name=str(number))
        np.testing.assert_allclose(array, low * comm.size, atol=1e-4 * comm.size)
        assert same_on_all(comm, np.ascontiguousarray(array))
    apart = np.zeros_like(low)
    allreduce(low, apart, name="0")
    np.testing.assert_array_equal(low, normal(40, 2, seed=1) @ normal(2, 50, seed=2))
    np.testing.assert_allclose(apart, low * comm.size, atol=1e-4 * comm.size)
    assert not strided[:, 1::2].any()


@pytest.mark.mpi
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_value_reaches_all_ranks_and_poisons_nothing(comm: MPI.Intracomm, make: Make, bad: float) -> None:
    allreduce = make(ranks_per_node=1)
    shapes = [(30, 20), (25, 40)]
    good = normal(1600, seed=comm.rank)
    allreduce(good.copy(), name="w", shapes=shapes)
    before = allreduce.feedback_state()
    spoiled = good.copy()
    if comm.rank == comm.size - 1:
        spoiled[5] = bad
    with np.errstate(invalid="ignore"):
        allreduce(spoiled, name="w", shapes=shapes)
    if comm.size > 1:
        assert np.isnan(spoiled[:600]).all()
    assert not np.isfinite(spoiled[5])
    assert np.isfinite(spoiled[600:]).all()
    after = allreduce.feedback_state()
    np.testing.assert_array_equal(after["w"][:600], before["w"][:600])
    assert np.isfinite(after["w"]).all()
    allreduce(good, name="w", shapes=shapes)
    assert np.isfinite(good).all()


@pytest.mark.mpi
def test_state_goes_on_in_another_object(comm: MPI.Intracomm, make: Make) -> None:
    one, other = make(ranks_per_node=1), make(ranks_per_node=1)
    one(normal(30, 20, seed=comm.rank), name="w")
    state = one.feedback_state()
    one.load_feedback_state(state)
    other.load_feedback_state(state)
    results = []
    for allreduce in (one, other):
        values = normal(30, 20, seed=[comm.rank, 1])
        allreduce(values, name="w")
        results.append(values)
    np.testing.assert_array_equal(*results)
    other.load_feedback_state(state)
    np.testing.assert_array_equal(other.feedback_state()["w"], state["w"])
    other.forget("w")
    assert not other.feedback_state()
    values = normal(20, 10, seed=comm.rank)
    other(values, name="w")  # another array now
    assert same_on_all(comm, values)


@pytest.mark.mpi(min_size=2)
def test_what_is_refused(comm: MPI.Intracomm, make: Make) -> None:
    allreduce = make(ranks_per_node=1)
    values = normal(30, 20)
    with pytest.raises(CodecError, match="expected shapes of 600 values together"):
        allreduce(values, name="v", shapes=[(30, 19)])
    pending = allreduce.start(values, name="w")
    with pytest.raises(CodecError, match="its last sum is not finished"):
        allreduce.start(values.copy(), name="w")
    pending.finish()
    with pytest.raises(CodecError, match=r"expected shapes .* as before"):
        allreduce(values.reshape(20, 30), name="w")
    with pytest.raises(CodecError, match="shapes or rank differ"):
        allreduce.load_feedback_state({"w/factors": np.zeros(3, np.float32)})
    with pytest.raises(CodecError, match="rank of powersgd: expected at least 1"):
        CompressedAllreduce(comm, "powersgd", rank=0)
    with pytest.raises(CodecError, match="auto cannot choose powersgd"):
        CompressedAllreduce(comm, "auto", allow=("exact", "powersgd"))
    with pytest.raises(CodecError, match=r"expected a number in \(0, 1\], received 0"):
        allreduce.share = 0.0
