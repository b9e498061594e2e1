"""Runs with error feedback: continued to the bit on the same grid, with nothing lost on another, equal weights everywhere."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small_families import CASES
from small_runs import do_steps, facts, on_grid, running

from lepton_mpi.checkpoint.reader import CheckpointReader
from lepton_mpi.comm.grid import GridShape
from lepton_mpi.config.schema import Config
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.train.resume import load, save
from lepton_mpi.train.run import Run
from lepton_mpi.train.state import TrainState

BEFORE, AFTER = 4, 3
MODES = ("int4", "sign1", "topk")


def compressed(case: str, mode: str, shard: str = "node", micro_batches: int = 0) -> Config:
    """Return the run of a family with a mode, several buckets, and a share and a rank that fit small weights."""
    config = CASES[case][0]
    changes = {"topk_share": 0.1, "topk_warmup_steps": 6, "powersgd_rank": 2, "warmup_share": 0.0}
    reduce = replace(config.reduce, mode=mode, bucket_mib=0.005, **changes)
    train = replace(config.train, micro_batches=micro_batches, check_replicas_every=2)
    return replace(config, reduce=reduce, train=train, optimizer=replace(config.optimizer, shard=shard))


def fingerprint(run: Run) -> dict[str, Any]:
    """Return a hash of the weights of the model, and of all that this rank keeps."""
    memory, exchange = run.network.memory, run.training.exchange
    arrays = {"values": memory.values, "residual": exchange.residual} | memory.slots
    own = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items() if array is not None}
    return own | {"sha256": run.network.weights.sha256()}


def owed(path: Path) -> dict[str, NDArray[np.float32]]:
    """Return what a checkpoint says that all nodes together owe."""
    with CheckpointReader(path) as reader:
        found = {name: info.shape for name, info in reader.tensors.items() if name.startswith("/residual/")}
        return {name: reader.read(name, (0,) * len(shape), shape) for name, shape in found.items()}


def fits(case: str, comm: MPI.Intracomm, shape: GridShape) -> bool:
    return shape.shards <= 3 and shape.stages <= 3 and shape.data > 1


@pytest.mark.mpi
@pytest.mark.parametrize("ranks_per_node", [1, 3])  # of four ranks, nodes of three and one, where stages differ in nodes
@pytest.mark.parametrize(("case", "shard", "micro_batches"), [("gpt", "node", 0), ("gpt", "data", 2), ("unet", "node", 0)])
@pytest.mark.parametrize("mode", MODES)
def test_a_continued_run_is_the_uninterrupted_one(
    comm: MPI.Intracomm,
    grid_shapes: list[GridShape],
    folder: Path,
    mode: str,
    case: str,
    shard: str,
    micro_batches: int,
    ranks_per_node: int,
) -> None:
    for shape in grid_shapes:
        if not fits(case, comm, shape):
            continue
        config, splits = on_grid(compressed(case, mode, shard, micro_batches), shape, ranks_per_node), CASES[case][1]
        with running(comm, config, splits) as run:
            state, _ = do_steps(run, TrainState(), BEFORE)
            _, unbroken = do_steps(run, state, AFTER)
            expected = fingerprint(run)
        with running(comm, config, splits) as run:
            middle, _ = do_steps(run, TrainState(), BEFORE)
            path = save(run.network, run.normalisation, middle, folder / str(shape), "direct", run.extras)
            half = fingerprint(run)
        with running(comm, config, splits) as run:
            found, _ = load(run.network, path, extras=run.extras)
            assert fingerprint(run) == half, shape
            _, continued = do_steps(run, found, AFTER)
            assert fingerprint(run) == expected, shape
            assert facts(continued) == facts(unbroken), shape


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("mode", MODES)
def test_what_is_owed_survives_a_change_of_grid(comm: MPI.Intracomm, grid_shapes: list[GridShape], folder: Path, mode: str) -> None:
    config, splits = compressed("gpt", mode), CASES["gpt"][1]
    with running(comm, on_grid(config, GridShape(comm.size, 1, 1), 1), splits) as run:
        state, _ = do_steps(run, TrainState(), BEFORE)
        path = save(run.network, run.normalisation, state, folder / "first", "direct", run.extras)
    before = comm.bcast(owed(path))
    assert any(values.any() for values in before.values())
    for shape in grid_shapes:
        if max(shape.shards, shape.stages) > 3:
            continue
        for ranks_per_node in (1, 3):
            with running(comm, on_grid(config, shape, ranks_per_node), splits) as run:
                state, _ = load(run.network, path, extras=run.extras)
                again = save(run.network, run.normalisation, state, folder / f"{shape} {ranks_per_node}", "direct", run.extras)
                after = comm.bcast(owed(again))
                for name, values in before.items():
                    np.testing.assert_allclose(after[name], values, rtol=1e-6, atol=1e-7)
                _, metrics = do_steps(run, state, 2)
                assert np.isfinite([m.loss for m in metrics]).all()
