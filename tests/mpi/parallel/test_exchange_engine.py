"""The C++ gradient exchange against its specification, on real and simulated nodes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from lepton_mpi import native
from lepton_mpi.comm import grid as grid_module
from lepton_mpi.comm.grid import GridShape, ProcessGrid
from lepton_mpi.comm.node_memory import MemoryPlan, NodeMemory
from lepton_mpi.compress.codec import make_codec
from lepton_mpi.compress.modes import codec_number
from lepton_mpi.errors import StallError
from lepton_mpi.parallel.exchange_reference import exchange_reference
from lepton_mpi.parallel.gradient_exchange import bucket_bounds
from lepton_mpi.runtime.mpi import MPI

MODES = ("exact", "bf16", "int8")
RANKS_PER_NODE = (0, 1, 2, 3)


class Engine:
    """One rank's engine on a data-parallel grid, with memory for values and gradients."""

    def __init__(
        self,
        grid: ProcessGrid,
        mode: str,
        bounds: list[int],
        timeout_s: float = 60.0,
        residual: NDArray[np.float32] | None = None,
        own_pieces: bool = False,
        background: bool = False,
    ) -> None:
        self.grid, self.mode, self.bounds = grid, mode, bounds
        ranks, num = grid.data_in_node.Get_size(), bounds[-1]
        self.rank = grid.data_in_node.Get_rank()
        signal_nbytes = native.Exchange.signal_nbytes(ranks, len(bounds) - 1)
        plan = MemoryPlan()
        values, signals, *grads = [plan.place(n) for n in (4 * num, signal_nbytes, *[4 * num] * ranks)]
        memory = NodeMemory(grid.data_in_node, plan.nbytes)
        self.values = memory.array(values, num, np.float32)
        self.grads = [memory.array(start, num, np.float32) for start in grads]
        peers = self.rank < grid.num_owners and grid.data_across.Get_size() > 1
        self.native = native.Exchange(
            grads=self.grads,
            signals=memory.array(signals, signal_nbytes, np.uint8),
            rank=self.rank,
            num_owners=grid.num_owners,
            peers=grid.data_across.py2f() if peers else None,
            codec=codec_number(mode),
            bounds=bounds,
            timeout_s=timeout_s,
            spin_s=0.0,
            residual=residual,
            own_pieces=own_pieces,
            background=background,
        )

    @property
    def own_grad(self) -> NDArray[np.float32]:
        return self.grads[self.rank]

    @property
    def owned(self) -> list[slice]:
        return [slice(*self.native.owned(bucket)) for bucket in range(self.native.num_buckets)]

    def publish(self) -> NDArray[np.float32]:
        """Make the reduced gradient the new values, and return them."""
        for here in self.owned:
            self.values[here] = self.own_grad[here]
        self.native.publish()
        return self.values

    def reduce(self, grad: NDArray[np.float32], started: list[int]) -> NDArray[np.float32]:
        """Exchange a gradient, with some buckets started by hand, and return the result."""
        self.own_grad[:] = grad
        for bucket in started:
            self.native.start(bucket)
            self.native.progress()
        self.native.finish()
        return self.publish()


Make = Callable[..., Engine]


@pytest.fixture(params=[False, True], ids=["alone", "thread"])
def make(comm: MPI.Intracomm, request: pytest.FixtureRequest) -> Iterator[Make]:
    """Make engines of all ranks along the data axis, without and with a progress thread."""
    grids: dict[int, ProcessGrid] = {}
    if request.param and MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        pytest.skip("MPI was started without MPI_THREAD_MULTIPLE")

    def engine(ranks_per_node: int, mode: str, bounds: list[int], timeout_s: float = 60.0) -> Engine:
        if ranks_per_node not in grids:
            grids[ranks_per_node] = ProcessGrid(comm, GridShape(comm.Get_size(), 1, 1), ranks_per_node)
        return Engine(grids[ranks_per_node], mode, bounds, timeout_s, background=request.param)

    yield engine
    for grid in grids.values():
        grid.free()


def gradient(rank: int, step: int, num: int) -> NDArray[np.float32]:
    """Return numbers whose sums round, of very different size from block to block, with a block of zeros."""
    random = np.random.default_rng([rank, step, num])
    size = np.exp2(random.integers(-30, 30, num // 256 + 1)).repeat(256)[:num]
    values = random.standard_normal(num) * size
    values[512:768] = 0
    return values.astype(np.float32)


@pytest.mark.mpi
@pytest.mark.parametrize("ranks_per_node", RANKS_PER_NODE)
@pytest.mark.parametrize(("num", "bucket_mib"), [(1, 4), (255, 4), (1024, 4), (1025, 0.001), (9000, 0.004), (100_003, 0.1)])
def test_engine_has_the_bits_of_the_specification(
    comm: MPI.Intracomm, make: Make, ranks_per_node: int, num: int, bucket_mib: float
) -> None:
    for mode in MODES:
        engine = make(ranks_per_node, mode, bucket_bounds(num, bucket_mib))
        buckets = range(engine.native.num_buckets)
        shuffled = np.random.default_rng(comm.rank).permutation(len(buckets)).tolist()  # each rank in an order of its own
        for step, started in enumerate([list(reversed(buckets)), shuffled, shuffled[::2], []]):
            grad = gradient(comm.rank, step, num)
            expected = exchange_reference(engine.grid, grad, mode, engine.bounds)
            reduced = engine.reduce(grad, started)
            assert reduced.tobytes() == expected.tobytes(), f"{mode}, step {step}"
            assert len(set(comm.allgather(hashlib.sha256(reduced).digest()))) == 1


@pytest.mark.mpi(min_size=3)
@pytest.mark.parametrize("mode", MODES)
def test_nodes_that_do_not_hold_consecutive_ranks(
    comm: MPI.Intracomm, make: Make, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    homes = [0, 1, 1, 0]
    monkeypatch.setattr(grid_module, "_split_nodes", lambda world, _: world.Split(homes[world.Get_rank()], world.Get_rank()))
    engine = make(0, mode, bucket_bounds(9000, 0.004))
    grad = gradient(comm.rank, 0, 9000)
    assert engine.reduce(grad, []).tobytes() == exchange_reference(engine.grid, grad, mode, engine.bounds).tobytes()


@pytest.mark.mpi
@pytest.mark.parametrize("ranks_per_node", RANKS_PER_NODE)
def test_owned_slices_of_a_node_make_the_buffer(comm: MPI.Intracomm, make: Make, ranks_per_node: int) -> None:
    engine = make(ranks_per_node, "exact", bucket_bounds(9000, 0.004))
    owned = np.zeros(9000, np.int64)
    for here in engine.owned:
        owned[here] += 1
    assert (engine.grid.data_in_node.allreduce(owned) == 1).all()


@pytest.mark.mpi
@pytest.mark.parametrize("mode", MODES)
def test_bytes_sent_are_those_of_the_codec(comm: MPI.Intracomm, make: Make, mode: str) -> None:
    num, nodes = 1024 * 24, comm.size  # pieces of all sizes come out even at 1, 2, 3 and 4 nodes
    engine = make(1, mode, [0, num])
    engine.reduce(gradient(comm.rank, 0, num), [])
    payload_nbytes = make_codec(mode).encoded_nbytes(num // nodes)
    assert engine.native.stats["sent_nbytes"] == 2 * (nodes - 1) * payload_nbytes


@pytest.mark.mpi
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ranks_per_node", (0, 1, 3))
def test_a_bad_value_of_one_rank_reaches_all(comm: MPI.Intracomm, make: Make, ranks_per_node: int, mode: str, bad: float) -> None:
    engine = make(ranks_per_node, mode, [0, 1024, 2000])
    for place in (0, 700, 1999):
        grad = gradient(comm.rank, 0, 2000)
        if comm.rank == comm.size - 1:
            grad[place] = bad
        expected = exchange_reference(engine.grid, grad, mode, engine.bounds)
        reduced = engine.reduce(grad, [1])
        finite = np.isfinite(expected)
        assert np.array_equal(np.isfinite(reduced), finite)
        assert reduced[finite].tobytes() == expected[finite].tobytes()
        travelled = mode == "int8" and engine.grid.num_nodes > 1
        block = slice(place // 256 * 256, min(place // 256 * 256 + 256, 2000)) if travelled else slice(place, place + 1)
        assert not np.isfinite(reduced[block]).any()
        assert np.isfinite(np.delete(reduced, np.r_[block])).all()


@pytest.mark.mpi
def test_starting_a_bucket_twice_is_an_error_that_harms_nothing(comm: MPI.Intracomm, make: Make) -> None:
    engine = make(0, "exact", [0, 1024, 1100])
    grad = gradient(comm.rank, 0, 1100)
    engine.own_grad[:] = grad
    engine.native.start(1)
    with pytest.raises(RuntimeError, match="bucket 1 was started twice"):
        engine.native.start(1)
    with pytest.raises(IndexError):
        engine.native.start(2)
    engine.native.finish()
    assert engine.publish().tobytes() == exchange_reference(engine.grid, grad, "exact", engine.bounds).tobytes()


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize(("ranks_per_node", "who"), [(0, r"data rank\(s\) {last} of this node"), (1, r"data node\(s\) {last}")])
def test_a_rank_that_stays_away_is_named_and_may_come_later(comm: MPI.Intracomm, make: Make, ranks_per_node: int, who: str) -> None:
    engine = make(ranks_per_node, "int8", [0, 8192], timeout_s=1.0)
    grad, last = gradient(comm.rank, 0, 8192), comm.size - 1
    engine.own_grad[:] = grad
    if comm.rank != last:
        with pytest.raises(StallError, match=f"did not move for 1 s, waiting for {who.format(last=last)}"):
            engine.native.finish()
    comm.Barrier()
    engine.native.finish()  # now all come
    reduced = engine.publish()
    assert reduced.tobytes() == exchange_reference(engine.grid, grad, "int8", engine.bounds).tobytes()


@pytest.mark.mpi(min_size=2)
def test_weights_that_are_not_published_end_the_wait(comm: MPI.Intracomm, make: Make) -> None:
    engine = make(0, "exact", [0, 1024], timeout_s=1.0)
    engine.native.finish()
    if comm.rank == 0:
        comm.Barrier()
        return
    with pytest.raises(StallError, match=r"the updated weights of data rank\(s\) 0 of this node"):
        engine.native.publish()
    comm.Barrier()


@pytest.mark.mpi
def test_what_an_engine_refuses(comm: MPI.Intracomm, make: Make) -> None:
    good = {"rank": 0, "num_owners": 1, "peers": None, "codec": 0, "bounds": [0, 1024, 1100], "timeout_s": 1.0, "spin_s": 0.0}
    good |= {"grads": [np.zeros(1100, np.float32)], "signals": NodeMemory(MPI.COMM_SELF, 4096).array(0, 4096, np.uint8)}
    native.Exchange(**good)
    small = NodeMemory(MPI.COMM_SELF, 4096).array(0, 64, np.uint8)
    for change, message in [
        ({"bounds": []}, "must not be empty"),
        ({"bounds": [0, 100, 300]}, "multiples of 1024"),
        ({"bounds": [1024, 1100]}, "start at 0 and grow"),
        ({"bounds": [0, 2048, 1024]}, "start at 0 and grow"),
        ({"bounds": [0, 2048]}, "must hold 2048 values, received 1100"),
        ({"residual": np.zeros(5, np.float32)}, "residual must hold 1100 values, received 5"),
        ({"rank": 1}, "rank is outside"),
        ({"num_owners": 2}, "number of owners"),
        ({"num_owners": 0}, "number of owners"),
        ({"signals": small}, "signals is too small"),
        ({"signals": good["signals"][4:]}, "aligned to 64 bytes"),
    ]:
        with pytest.raises(ValueError, match=message):
            native.Exchange(**(good | change))
    with pytest.raises(IndexError, match="no such bucket"):
        native.Exchange(**good).owned(2)
