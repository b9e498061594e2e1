"""CompressedAllreduce: right sums within each codec's bound, the same bytes on all ranks, odd sizes, owners, nodes and inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lepton_mpi.comm import CompressedAllreduce
from lepton_mpi.compress.modes import MODES
from lepton_mpi.errors import CodecError, StallError
from lepton_mpi.runtime.mpi import MPI

CODECS = tuple(name for name, mode in MODES.items() if mode.number is not None)
RANKS_PER_NODE = (0, 1, 2, 3)
SIZES = (0, 1, 2, 3, 5, 7, 1023, 1024, 1025, 40_961, 300_007)
# What a value loses when it travels once, as a fraction of the largest of its block; see docs/wire_format.md.
TRAVEL_ERROR = {"exact": 0.0, "bf16": 2**-8, "fp16": 2**-11, "int8": 0.501 / 127, "int4": 0.51 / 7, "sign1": 2.0, "topk": 1.0}

Make = Callable[..., CompressedAllreduce]


@pytest.fixture
def make(comm: MPI.Intracomm) -> Iterator[Make]:
    made: list[CompressedAllreduce] = []

    def allreduce(codec: str, **options: Any) -> CompressedAllreduce:
        # Short chunks, so that small arrays move as pipelines.
        made.append(CompressedAllreduce(comm, codec, **{"chunk_mib": 0.02, "timeout_s": 60.0, **options}))
        return made[-1]

    yield allreduce
    for engine in made:
        engine.free()


def gradient(rank: int, size: int, step: int = 0) -> NDArray[np.float32]:
    """Return numbers of one size, so that bounds hold for all blocks."""
    return np.random.default_rng([rank, size, step]).uniform(-1, 1, size).astype(np.float32)


def exact_sum(comm: MPI.Intracomm, size: int, step: int = 0) -> NDArray[np.float64]:
    return np.sum([gradient(r, size, step).astype(np.float64) for r in range(comm.size)], axis=0)


def bound(codec: str, ranks: int) -> float:
    """What may be lost of sums of values below 1: once by the values of all ranks, once by the sum, and by fp32 additions."""
    return ranks * (2.01 * TRAVEL_ERROR[codec] * (1 + TRAVEL_ERROR[codec]) + ranks * 2.0**-23)


def same_on_all(comm: MPI.Intracomm, array: NDArray[np.float32]) -> bool:
    return len(set(comm.allgather(hashlib.sha256(array.tobytes()).digest()))) == 1


@pytest.mark.mpi
@pytest.mark.parametrize("ranks_per_node", RANKS_PER_NODE)
@pytest.mark.parametrize("codec", CODECS)
def test_sums_lie_within_the_bound_and_are_equal_on_all_ranks(
    comm: MPI.Intracomm, make: Make, codec: str, ranks_per_node: int
) -> None:
    allreduce = make(codec, ranks_per_node=ranks_per_node)
    for size in SIZES:
        values = gradient(comm.rank, size)
        allreduce(values, name=str(size))
        assert same_on_all(comm, values), size
        assert np.abs(values - exact_sum(comm, size)).max(initial=0.0) <= bound(codec, comm.size), size
    if codec != "exact" and allreduce.num_nodes > 1:
        assert np.abs(values - exact_sum(comm, SIZES[-1])).max() > 1e-6, "nothing was compressed"


@pytest.mark.mpi
@pytest.mark.parametrize("ranks_per_node", RANKS_PER_NODE)
def test_exact_sums_have_the_bits_of_sums_in_rank_order_of_node_sums(comm: MPI.Intracomm, make: Make, ranks_per_node: int) -> None:
    allreduce = make("exact", ranks_per_node=ranks_per_node)
    size, step = 40_961, ranks_per_node or comm.size
    nodes = []
    for first in range(0, comm.size, step):
        total = gradient(first, size)
        for rank in range(first + 1, min(first + step, comm.size)):
            total = total + gradient(rank, size)
        nodes.append(total)
    expected = nodes[0]
    for total in nodes[1:]:
        expected = expected + total
    values = gradient(comm.rank, size)
    allreduce(values)
    assert values.tobytes() == expected.tobytes()


@pytest.mark.mpi
@pytest.mark.parametrize("ranks_per_node", [0, 1])
def test_layouts_of_memory(comm: MPI.Intracomm, make: Make, ranks_per_node: int) -> None:
    allreduce = make("exact", ranks_per_node=ranks_per_node)
    expected = exact_sum(comm, 600).astype(np.float32)
    own = gradient(comm.rank, 600)
    apart = np.empty_like(own)
    allreduce(own, apart)  # out of place
    assert own.tobytes() == gradient(comm.rank, 600).tobytes()
    matrix = own.reshape(20, 30).copy()
    allreduce(matrix)
    columns = np.asfortranarray(own.reshape(20, 30))
    allreduce(columns)
    strided = np.zeros(1200, np.float32)
    strided[::2] = own
    allreduce(strided[::2])
    memory = np.zeros(2401, np.uint8)
    unaligned = memory[1:].view(np.float32)
    unaligned[:] = own
    allreduce(unaligned)
    for found in (apart, matrix.reshape(-1), columns.reshape(-1), strided[::2], unaligned):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
        assert same_on_all(comm, found)
    assert not strided[1::2].any()
    assert memory[0] == 0


@pytest.mark.mpi
@pytest.mark.parametrize("ranks_per_node", RANKS_PER_NODE)
@pytest.mark.parametrize("absent", [0, -1])
def test_a_rank_that_brings_nothing_adds_zeros(comm: MPI.Intracomm, make: Make, ranks_per_node: int, absent: int) -> None:
    allreduce, size, absent = make("int8", ranks_per_node=ranks_per_node), 5000, absent % comm.size
    out = np.full(size, np.nan, np.float32)
    allreduce(None if comm.rank == absent else gradient(comm.rank, size), out)
    expected = exact_sum(comm, size) - gradient(absent, size)
    assert np.abs(out - expected).max() <= bound("int8", comm.size)
    assert same_on_all(comm, out)


@pytest.mark.mpi
@pytest.mark.parametrize("ranks_per_node", RANKS_PER_NODE)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("codec", CODECS)
def test_a_bad_value_reaches_all_ranks_and_stays_in_its_block(
    comm: MPI.Intracomm, make: Make, codec: str, bad: float, ranks_per_node: int
) -> None:
    allreduce, size, where = make(codec, ranks_per_node=ranks_per_node, feedback=True), 40_000, 20_000
    values = gradient(comm.rank, size)
    if comm.rank == comm.size - 1:
        values[where] = bad
    allreduce(values, name="w")
    assert not np.isfinite(values[where])
    assert same_on_all(comm, values)
    finite = np.isfinite(values)
    block = 6144 if codec == "topk" else 1024  # a block of topk is as long as a chunk here
    assert finite[: max(where // 1024 * 1024 - block + 1024, 0)].all()
    assert finite[where // 1024 * 1024 + block :].all()
    # Nothing is poisoned: what is owed stays finite, and the next sum is whole.
    assert all(np.isfinite(owed).all() for owed in allreduce.feedback_state().values())
    values = gradient(comm.rank, size, 1)
    allreduce(values, name="w")
    assert np.isfinite(values).all()


@pytest.mark.mpi
@pytest.mark.parametrize("ranks_per_node", RANKS_PER_NODE)
@pytest.mark.parametrize("codec", ["bf16", "int8", "int4", "sign1", "topk"])
def test_feedback_loses_nothing_over_many_steps(comm: MPI.Intracomm, make: Make, codec: str, ranks_per_node: int) -> None:
    """The sums so far and what is still owed make the exact sums so far, also across a change of nodes."""
    size, sums, exact = 5003, np.zeros(5003), np.zeros(5003)
    allreduce = make(codec, ranks_per_node=ranks_per_node, feedback=True)
    for step in range(6):
        if step == 3:
            state = allreduce.feedback_state()
            allreduce = make(codec, ranks_per_node=1, feedback=True)
            allreduce.load_feedback_state(state)
            assert allreduce.feedback_state()["w"].tobytes() == state["w"].tobytes()
        values = gradient(comm.rank, size, step)
        allreduce(values, name="w")
        sums += values
        exact += exact_sum(comm, size, step)
    owed = allreduce.feedback_state()["w"]
    np.testing.assert_allclose(sums + owed, exact, atol=1e-4 * comm.size)


@pytest.mark.mpi
@pytest.mark.parametrize("ranks_per_node", RANKS_PER_NODE)
def test_a_change_to_exact_pays_what_is_owed(comm: MPI.Intracomm, make: Make, ranks_per_node: int) -> None:
    lossy, exact = make("sign1", ranks_per_node=1), make("exact", ranks_per_node=ranks_per_node, feedback=True)
    first, second = gradient(comm.rank, 5003), gradient(comm.rank, 5003, 1)
    lossy(first, name="w")
    exact.load_feedback_state(lossy.feedback_state())
    exact(second, name="w")
    np.testing.assert_allclose(first + second, exact_sum(comm, 5003) + exact_sum(comm, 5003, 1), atol=1e-4)
    assert not exact.feedback_state()["w"].any()


@pytest.mark.mpi
@pytest.mark.parametrize("ranks_per_node", RANKS_PER_NODE)
@pytest.mark.parametrize("background", [False, True])
def test_many_sums_at_once_in_any_pace(comm: MPI.Intracomm, make: Make, ranks_per_node: int, background: bool) -> None:
    if background and MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        with pytest.raises(CodecError, match="MPI_THREAD_MULTIPLE"):
            make("bf16", background=True)
        return
    allreduce = make("bf16", ranks_per_node=ranks_per_node, average=True, background=background)
    arrays = [gradient(comm.rank, size) for size in SIZES]
    pending = []
    for step, array in enumerate(arrays):
        pending.append(allreduce.start(array, name=str(step)))
        for _ in range(comm.rank * 3):
            allreduce.progress()
    order = np.random.default_rng(comm.rank).permutation(len(pending))
    for index in order:
        pending[index].finish()
        assert pending[index].done()
        pending[index].finish()  # nothing more happens
    for array, size in zip(arrays, SIZES, strict=True):
        assert np.abs(array - exact_sum(comm, size) / comm.size).max(initial=0.0) <= bound("bf16", comm.size)
        assert same_on_all(comm, array)


@pytest.mark.mpi
def test_bytes_sent_are_those_of_two_phases(comm: MPI.Intracomm, make: Make) -> None:
    size, nodes = 1024 * 24, comm.size
    for codec, per_value in (("exact", 4), ("bf16", 2), ("int8", 1 + 4 / 256), ("int4", 0.5 + 2 / 64), ("sign1", 1 / 8 + 4 / 1024)):
        allreduce = make(codec, ranks_per_node=1, chunk_mib=1.0)
        allreduce(gradient(comm.rank, size))
        assert allreduce.sent_nbytes == 2 * (nodes - 1) * size / nodes * per_value


@pytest.mark.mpi
def test_topk_sends_its_share(comm: MPI.Intracomm, make: Make) -> None:
    size, nodes = 200_000, comm.size
    allreduce = make("topk", ranks_per_node=1, chunk_mib=1.0, share=0.02)
    for share in (0.02, 0.1):
        allreduce.share = share
        before = allreduce.sent_nbytes
        allreduce(gradient(comm.rank, size), name="w")
        sent = comm.allreduce(allreduce.sent_nbytes - before)
        assert sent == pytest.approx(2 * (nodes - 1) * size * share * 4, rel=0.25)


@pytest.mark.mpi
@pytest.mark.parametrize("size", [60_012, 5, 250_000])
def test_topk_that_sends_everything_is_as_exact_as_fp16(comm: MPI.Intracomm, make: Make, size: int) -> None:
    """Payloads of several messages; of 60,012 values two nodes make one that fills its only message of 60,000 bytes."""
    allreduce = make("topk", ranks_per_node=1, chunk_mib=1.0, share=1.0, feedback=False)
    values = gradient(comm.rank, size)
    allreduce(values)
    assert same_on_all(comm, values)
    assert np.abs(values - exact_sum(comm, size)).max() <= bound("fp16", comm.size)


@pytest.mark.mpi
def test_auto_may_choose_topk(comm: MPI.Intracomm, make: Make) -> None:
    allreduce = make("auto", allow=("exact", "topk"), ranks_per_node=1, chunk_mib=1.0, share=0.05)
    size, ways = 300_000, set()
    sums, exact = np.zeros(size), np.zeros(size)
    for step in range(12):
        ways.add(allreduce.choice(4 * size))
        values = gradient(comm.rank, size, step)
        allreduce(values, name="w")
        assert same_on_all(comm, values)
        sums += values
        exact += exact_sum(comm, size, step)
    assert ways <= {"plain", "exact", "topk"}
    np.testing.assert_allclose(sums + allreduce.feedback_state()["w"], exact, atol=1e-4 * comm.size)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("ranks_per_node", [0, 1])
def test_a_rank_that_stays_away_is_named_and_may_come_later(comm: MPI.Intracomm, make: Make, ranks_per_node: int) -> None:
    allreduce, last = make("int8", ranks_per_node=ranks_per_node, timeout_s=1.0), comm.size - 1
    values = gradient(comm.rank, 5000)
    pending = allreduce.start(values) if comm.rank != last else None
    if pending is not None:
        with pytest.raises(StallError, match=rf"did not move for 1 s, waiting for rank\(s\) {last}$"):
            pending.finish()
    comm.Barrier()
    (pending or allreduce.start(values)).finish()
    assert np.abs(values - exact_sum(comm, 5000)).max() <= bound("int8", comm.size)


@pytest.mark.mpi
def test_what_is_refused(comm: MPI.Intracomm, make: Make) -> None:
    with pytest.raises(CodecError, match="expected a codec among exact, bf16"):
        make("int7")
    allreduce = make("sign1")
    fixed = gradient(0, 4)
    fixed.setflags(write=False)
    for arguments, message in [
        ((None,), "must give out"),
        ((np.zeros(4),), "expected a float32 array, received float64"),
        ((np.zeros(4, np.float32), np.zeros(4)), "out: expected a float32 array, received float64"),
        ((np.zeros(4, np.float32), np.zeros(5, np.float32)), "expected out of 4 values"),
        ((fixed,), "expected a writeable array"),
    ]:
        with pytest.raises(CodecError, match=message):
            allreduce(*arguments)
    allreduce(np.zeros(4, np.float32), name="w")
    with pytest.raises(CodecError, match="array 'w': expected 4 values, as before, received 5"):
        allreduce(np.zeros(5, np.float32), name="w")
