"""A run that is continued from a checkpoint is, to the bit, the one that was never interrupted, whatever is switched on."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_families import CASES
from small_runs import do_steps, facts, on_grid, running

from lepton_mpi.comm.grid import GridShape
from lepton_mpi.config.schema import Config
from lepton_mpi.models.family import ModelSpec
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.train.inference import evaluate
from lepton_mpi.train.network import declare_model
from lepton_mpi.train.resume import load, save
from lepton_mpi.train.run import Run, describe_data
from lepton_mpi.train.state import TrainState

ADAMW = {"name": "adamw", "lr": 0.01, "warmup_steps": 2, "decay_steps": 6, "clip_norm": 1.0, "schedule": "cosine"}
BEFORE, AFTER = 4, 3  # 3 steps an epoch: the break is inside the second one
EVERYTHING = {"ema_decay": 0.7, "micro_batches": 2, "precision": "bf16"}


def with_everything(case: str) -> Config:
    """Return the run of a family with moving average, micro-batches, bf16, AdamW with a schedule, and dropout if it has any."""
    config = CASES[case][0]
    return replace(config, train=replace(config.train, **EVERYTHING), optimizer=replace(config.optimizer, **ADAMW))


def evaluation_of(run: Run) -> str:
    assert run.test_loader is not None
    return repr(evaluate(run.network, run.test_loader))


def fingerprint(run: Run) -> dict[str, Any]:
    """Return a hash of the weights, and of all that this rank has of values, average and optimizer state."""
    memory = run.network.memory
    arrays = {"values": memory.values} | memory.slots
    own = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()}
    return own | {"sha256": run.network.weights.sha256()}


def model_of(comm: MPI.Intracomm, case: str) -> ModelSpec:
    config, splits = CASES[case]
    return declare_model(config.model, describe_data(comm, config.model, splits.train, splits.test))


@pytest.mark.mpi
@pytest.mark.parametrize("ranks_per_node", [0, 1])
@pytest.mark.parametrize("case", ["gpt", "unet"])
def test_a_continued_run_is_the_uninterrupted_one(
    comm: MPI.Intracomm, grid_shapes: list[GridShape], folder: Path, case: str, ranks_per_node: int
) -> None:
    splits, model = CASES[case][1], model_of(comm, case)
    for shape in grid_shapes:
        if shape.shards > model.max_shards or shape.stages > model.max_stages:
            continue
        if ranks_per_node and shape.data == 1:
            continue  # nodes make no difference
        config = on_grid(with_everything(case), shape, ranks_per_node)
        with running(comm, config, splits) as run:
            state, _ = do_steps(run, TrainState(), BEFORE)
            state, unbroken = do_steps(run, state, AFTER)
            expected, metrics = fingerprint(run), evaluation_of(run)
        assert {"values", "ema", "first_moment", "second_moment"} <= expected.keys()
        with running(comm, config, splits) as run:
            middle, _ = do_steps(run, TrainState(), BEFORE)
            path = save(run.network, run.normalisation, middle, folder / f"{case} {shape}", "direct")
            half = fingerprint(run)
        with running(comm, config, splits) as run:
            found, _ = load(run.network, path)
            assert (found.step, found.epoch, found.position) == (BEFORE, 1, 8)
            assert fingerprint(run) == half, shape
            _, continued = do_steps(run, found, AFTER)
            assert fingerprint(run) == expected, shape
            assert facts(continued) == facts(unbroken), shape
            assert evaluation_of(run) == metrics, shape


@pytest.mark.mpi
@pytest.mark.parametrize("forgotten", ["ema", "first_moment", "position"])
def test_nothing_of_it_could_be_left_out(comm: MPI.Intracomm, folder: Path, forgotten: str) -> None:
    config, splits = on_grid(with_everything("mlp"), GridShape(comm.size, 1, 1)), CASES["mlp"][1]
    with running(comm, config, splits) as run:
        state, _ = do_steps(run, TrainState(), BEFORE)
        path = save(run.network, run.normalisation, state, folder, "direct")
        do_steps(run, state, AFTER)
        expected = fingerprint(run)
    with running(comm, config, splits) as run:
        state, _ = load(run.network, path)
        if forgotten == "position":
            state = replace(state, position=0)
        elif run.network.grid.data_in_node.Get_rank() == 0:
            run.network.memory.slots[forgotten][...] = 0
        comm.Barrier()
        do_steps(run, state, AFTER)
        assert fingerprint(run) != expected
