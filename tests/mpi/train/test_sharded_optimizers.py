"""Optimizer state divided over a node or over the data axis: the same training, less memory, and checkpoints for both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from plain_training import train_plainly
from small_runs import configure, do_steps, facts, made_splits, on_grid, running

from lepton_mpi.checkpoint.layout import DATA_FILE
from lepton_mpi.comm.grid import GridShape
from lepton_mpi.config.schema import Config
from lepton_mpi.parallel.ownership import BLOCK_VALUES
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.train.averaging import averaged_weights
from lepton_mpi.train.inference import evaluate
from lepton_mpi.train.resume import load, save
from lepton_mpi.train.run import Run
from lepton_mpi.train.state import TrainState

# Layers of more than a block of values, so that several nodes own a part of each.
WIDE = {"hidden_sizes": (61, 47, 31)}
ADAMW = {"name": "adamw", "lr": 0.01, "weight_decay": 0.1, "schedule": "constant"}
SGD = {"name": "sgd", "lr": 0.05, "weight_decay": 0.01, "schedule": "constant"}
LAMB = {"name": "lamb", "lr": 0.02, "weight_decay": 0.1, "schedule": "constant"}
NUM_STEPS = 5


def sharded(shard: str, optimizer: dict[str, Any], **sections: dict[str, Any]) -> Config:
    sections = {"model": WIDE, "train": {"ema_decay": 0.8}, "reduce": {"bucket_mib": 0.003}} | sections
    return configure(optimizer=optimizer | {"shard": shard}, **sections)


def with_nodes(comm: MPI.Intracomm, config: Config, ranks_per_node: int) -> Config:
    return on_grid(config, GridShape(comm.size, 1, 1), ranks_per_node)


def state_of(run: Run, state: TrainState, folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return all tensors of a checkpoint of the run."""
    path = save(run.network, run.normalisation, state, folder, "direct")
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    with h5py.File(path / DATA_FILE) as file:
        for kind in (file["param"], *file["opt"].values()):
            tensors |= {f"{kind.name}/{name}": values[()] for name, values in kind.items()}
    run.network.grid.world.Barrier()
    return tensors


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("optimizer", "ranks_per_node"),
    [(SGD, 1), (ADAMW, 1), (ADAMW, 2), (ADAMW, 3), (LAMB, 2)],
    ids=["sgd 1", "adamw 1", "adamw 2", "adamw 3", "lamb 2"],
)
def test_both_train_alike(comm: MPI.Intracomm, folder: Path, optimizer: dict[str, Any], ranks_per_node: int) -> None:
    """Gradients are added in one order, so all bits are equal; norms are added slice by slice, so LAMB's are to rounding."""
    found = []
    for shard in ("node", "data"):
        with running(comm, with_nodes(comm, sharded(shard, optimizer), ranks_per_node), made_splits()) as run:
            state, metrics = do_steps(run, TrainState(), NUM_STEPS)
            assert len(set(comm.allgather(run.network.memory.values.tobytes()))) == 1
            assert run.test_loader is not None
            evaluated = repr(evaluate(run.network, run.test_loader))
            tensors = state_of(run, state, folder / f"{shard}")
            found.append((tensors, [m.loss for m in metrics], evaluated, run.network.weights.sha256()))
    (node, *others), (data, *expected) = found
    assert any(name.startswith("/opt/ema/") for name in node)
    assert node.keys() == data.keys()
    for name, values in node.items():
        if optimizer["name"] == "lamb":
            np.testing.assert_allclose(data[name], values, rtol=1e-5, atol=1e-6, err_msg=name)
        else:
            assert data[name].tobytes() == values.tobytes(), name
    if optimizer["name"] != "lamb":
        assert others == expected


@pytest.mark.mpi
def test_all_grids_train_like_plain_lamb(comm: MPI.Intracomm, grid_shapes: list[GridShape]) -> None:
    config = configure(optimizer=LAMB | {"shard": "data", "clip_norm": 0.5}, reduce={"bucket_mib": 0.001})
    splits = made_splits()
    plain = train_plainly(config, splits.train, NUM_STEPS)
    for shape in grid_shapes:
        with running(comm, on_grid(config, shape, 1), splits) as run:
            _, metrics = do_steps(run, TrainState(), NUM_STEPS)
            np.testing.assert_allclose([m.loss for m in metrics], plain.losses, rtol=1e-4, err_msg=str(shape))
            np.testing.assert_allclose([m.grad_norm for m in metrics], plain.grad_norms, rtol=1e-3, err_msg=str(shape))


@pytest.mark.mpi
def test_reproducible_lamb_has_the_same_bits_everywhere(comm: MPI.Intracomm, grid_shapes: list[GridShape]) -> None:
    """The trust ratios come from exact norms, and then neither grid nor shard setting shows."""
    found = {}
    for shard, ranks_per_node in (("node", 0), ("data", 1)):
        train = {"reproducible": True, "ema_decay": 0.8}
        config = configure(optimizer=LAMB | {"shard": shard, "clip_norm": 0.5}, train=train, reduce={"bucket_mib": 0.001})
        alone = MPI.COMM_SELF.Dup()
        with running(alone, on_grid(config, GridShape(1, 1, 1)), made_splits()) as run:
            _, metrics = do_steps(run, TrainState(), 3)
            found["alone"] = run.network.weights.sha256(), facts(metrics)
        alone.Free()
        for shape in grid_shapes:
            with running(comm, on_grid(config, shape, ranks_per_node), made_splits()) as run:
                _, metrics = do_steps(run, TrainState(), 3)
                found[f"{shape} {shard} {ranks_per_node}"] = run.network.weights.sha256(), facts(metrics)
    assert len(set(found.values())) == 1, found


@pytest.mark.mpi
@pytest.mark.parametrize(("mode", "tolerance"), [("exact", 1e-4), ("bf16", 0.02), ("int8", 0.05)])
def test_onebit_adam_adds_up_momenta(comm: MPI.Intracomm, mode: str, tolerance: float) -> None:
    """With exact sums it is Adam with a frozen variance; the norm that it reports is then the momentum's."""
    optimizer = {"name": "onebit_adam", "lr": 0.01, "weight_decay": 0.1, "schedule": "constant", "freeze_share": 0.5}
    config, splits = configure(optimizer=optimizer, train={"steps": 12}, reduce={"mode": mode}), made_splits()
    config = replace(config, optimizer=replace(config.optimizer, decay_steps=12))
    plain = train_plainly(config, splits.train, 12)
    usual = train_plainly(replace(config, optimizer=replace(config.optimizer, freeze_share=1.0)), splits.train, 12)
    assert abs(plain.losses[-1] / usual.losses[-1] - 1) > 0.001
    for ranks_per_node in (0, 1):
        with running(comm, with_nodes(comm, config, ranks_per_node), splits) as run:
            _, metrics = do_steps(run, TrainState(), 12)
            np.testing.assert_allclose([m.loss for m in metrics], plain.losses, rtol=tolerance)
            np.testing.assert_allclose([m.grad_norm for m in metrics[:6]], plain.grad_norms[:6], rtol=10 * tolerance)
            if mode == "exact":
                assert all(m.grad_norm < norm for m, norm in zip(metrics[7:], plain.grad_norms[7:], strict=True))
            assert len(set(comm.allgather(run.network.memory.values.tobytes()))) == 1


@pytest.mark.mpi
@pytest.mark.parametrize("writer", ["node", "data"])
def test_checkpoints_pass_between_settings_and_grids(
    comm: MPI.Intracomm, grid_shapes: list[GridShape], folder: Path, writer: str
) -> None:
    splits = made_splits()
    for i, shape in enumerate(grid_shapes if writer == "data" else grid_shapes[:1]):
        config = on_grid(sharded(writer, ADAMW), shape, 1)
        with running(comm, config, splits) as run:
            state, _ = do_steps(run, TrainState(), 3)
            tensors = state_of(run, state, folder / f"{i}")
            _, unbroken = do_steps(run, state, 3)
            digest = run.network.weights.sha256()
        path = folder / f"{i}" / "step-000000003"
        flipped = "data" if writer == "node" else "node"
        readers = [(flipped, shape, 1), ("data", grid_shapes[(i + 1) % len(grid_shapes)], 2)]
        for reader, other, ranks_per_node in [(writer, shape, 1), *readers] if i == 0 else readers:
            with running(comm, on_grid(sharded(reader, ADAMW), other, ranks_per_node), splits) as run:
                found, _ = load(run.network, path)
                again = state_of(run, found, folder / f"{i} {reader} {ranks_per_node}")
                assert {name: values.tobytes() for name, values in again.items()} == {
                    name: values.tobytes() for name, values in tensors.items()
                }, f"{writer} {shape} read by {reader} {other}"
                _, continued = do_steps(run, found, 3)
                if (other, ranks_per_node) == (shape, 1) and shape.stages * shape.shards == 1:
                    assert run.network.weights.sha256() == digest
                np.testing.assert_allclose([m.loss for m in continued], [m.loss for m in unbroken], rtol=1e-4)
                if reader == writer and other == shape:
                    assert facts(continued) == facts(unbroken)


@pytest.mark.mpi
@pytest.mark.parametrize("ranks_per_node", [1, 2])
def test_averaged_weights_come_and_go(comm: MPI.Intracomm, folder: Path, ranks_per_node: int) -> None:
    with running(comm, with_nodes(comm, sharded("data", ADAMW), ranks_per_node), made_splits()) as run:
        state, _ = do_steps(run, TrainState(), 4)
        tensors, before = state_of(run, state, folder), run.network.memory.values.tobytes()
        with averaged_weights(run.network):
            for name in run.network.weights.names:
                whole = run.network.weights.gather(name)
                if whole is not None:
                    assert whole.tobytes() == tensors[f"/opt/ema/{name}"].tobytes()
            assert len(set(comm.allgather(run.network.memory.values.tobytes()))) == 1
            assert run.network.memory.values.tobytes() != before
        assert run.network.memory.values.tobytes() == before


@pytest.mark.mpi
def test_memory_of_a_node(comm: MPI.Intracomm) -> None:
    """Each slot takes 4 bytes a value, over the number of nodes, and at most one block more in each bucket."""
    config = with_nodes(comm, sharded("data", ADAMW, model={"hidden_sizes": (301, 203)}), 1)
    with running(comm, config, made_splits()) as run:
        memory, num_buckets = run.network.memory, run.network.memory.ownership.num_buckets
        assert memory.slots.keys() == {"first_moment", "second_moment", "ema"}
        for slot in memory.slots.values():
            assert slot.nbytes <= memory.values.nbytes / comm.size + 4 * BLOCK_VALUES * num_buckets
        total = comm.allreduce(sum(slot.nbytes for slot in memory.slots.values()))
        assert total == 3 * memory.values.nbytes
