"""Replicas stay equal on every grid, and a damaged one is named on all ranks alike."""

from __future__ import annotations

import pytest
from small_runs import configure, do_steps, made_splits, on_grid, running

from lepton_mpi.comm.grid import GridShape
from lepton_mpi.errors import RankMismatchError
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.train.replicas import ReplicaCheck
from lepton_mpi.train.state import TrainState

CONFIG = configure(train={"ema_decay": 0.5})


@pytest.mark.mpi
@pytest.mark.parametrize("ranks_per_node", [0, 1, 2])
def test_training_keeps_replicas_equal(comm: MPI.Intracomm, grid_shapes: list[GridShape], ranks_per_node: int) -> None:
    for shape in grid_shapes:
        with running(comm, on_grid(CONFIG, shape, ranks_per_node), made_splits()) as run:
            check = ReplicaCheck(run.network, 1)
            check.begin(0)
            state, _ = do_steps(run, TrainState(), 3)
            check.step_done(state.step)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("slot", ["", "first_moment", "ema"])
def test_one_bit_of_one_node_is_named_on_all_ranks(comm: MPI.Intracomm, slot: str) -> None:
    config = on_grid(CONFIG, GridShape(comm.size, 1, 1), ranks_per_node=1)
    with running(comm, config, made_splits()) as run:
        check, memory, last = ReplicaCheck(run.network, 1), run.network.memory, comm.size - 1
        check.check(0)
        if comm.rank == last:
            (memory.slots[slot] if slot else memory.values).view("uint32")[memory.layout.offsets[1]] ^= 1
        with pytest.raises(RankMismatchError) as found:
            check.check(8)
        text, name = str(found.value), memory.layout.blocks[1].name
        assert len(set(comm.allgather(text))) == 1
        assert f"after step 8: {f'optimizer state {slot} of' if slot else 'parameter'} {name}: the cop" in text
        assert f"rank {last} (data {last}, stage 0, shard 0) differ" in text
        assert text.count("layers.") == 1  # nothing else
        comm.Barrier()


@pytest.mark.mpi(min_size=2)
def test_copies_of_shards_are_compared(comm: MPI.Intracomm) -> None:
    with running(comm, on_grid(CONFIG, GridShape(1, 1, comm.size)), made_splits()) as run:
        check, layout, values = ReplicaCheck(run.network, 1), run.network.memory.layout, run.network.memory.values
        check.check(0)
        whole = next(i for i, block in enumerate(layout.blocks) if block.spec.split_dim is None)
        if comm.rank == 0:
            layout.view(whole, values).reshape(-1)[0] += 1
        with pytest.raises(
            RankMismatchError, match=rf"parameter {layout.blocks[whole].name}: .*rank 0 \(data 0, stage 0, shard 0\)"
        ):
            check.check(1)
        comm.Barrier()


@pytest.mark.mpi
def test_when_it_is_due(comm: MPI.Intracomm, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(ReplicaCheck, "check", lambda self, step: seen.append(step))
    with running(comm, on_grid(CONFIG, GridShape(comm.size, 1, 1)), made_splits()) as run:
        for every, expected in ((0, []), (2, [3, 4, 6, 7]), (7, [3, 7])):
            seen.clear()
            check = ReplicaCheck(run.network, every)
            check.begin(3)
            for step in range(4, 8):
                check.step_done(step)
            check.end(7)
            assert seen == expected
        seen.clear()
        ReplicaCheck(run.network, 2).begin(0)
        assert seen == []
