"""Every schedule trains as one stage does, recomputation changes no bit, and a rerun has the same bits."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from small_families import CASES
from small_runs import do_steps, facts, on_grid, running

from lepton_mpi.comm.grid import GridShape
from lepton_mpi.config.schema import Config
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.train.inference import evaluate
from lepton_mpi.train.network import declare_model
from lepton_mpi.train.run import describe_data
from lepton_mpi.train.state import TrainState

NUM_STEPS = 3  # an epoch of 8, 8 and 4 samples
# Tied weights of the first and the last stage, batch norm, skips that pass over stages, padding, dropout.
FAMILIES = ("gpt", "resnet", "unet", "bert")
Found = tuple[str, str, dict[str, NDArray[np.float32] | None]]


def configured(case: str, shape: GridShape, micro_batches: int, **keys: object) -> Config:
    """Return the configuration of a case; keys of `grid` and `train` mixed."""
    config = on_grid(CASES[case][0], shape)
    grid = {name: keys.pop(name) for name in ("virtual_stages", "balance") if name in keys}
    train = replace(config.train, micro_batches=micro_batches, **keys)  # type: ignore[arg-type]
    return replace(config, grid=replace(config.grid, **grid), train=train)  # type: ignore[arg-type]


def do_run(comm: MPI.Intracomm, case: str, config: Config) -> Found:
    """Return hash, facts and weights; weights on rank 0 alone."""
    with running(comm, config, CASES[case][1]) as run:
        _, steps = do_steps(run, TrainState(), NUM_STEPS)
        assert run.test_loader is not None
        weights = run.network.weights
        found = facts(steps) + repr(evaluate(run.network, run.test_loader))
        return weights.sha256(), found, {name: weights.gather(name) for name in weights.names}


@cache
def alone(case: str, micro_batches: int) -> Found:
    comm = MPI.COMM_SELF.Dup()
    found = do_run(comm, case, configured(case, GridShape(1, 1, 1), micro_batches))
    comm.Free()
    return found


def pipelines(comm: MPI.Intracomm) -> list[GridShape]:
    """Return a pipeline of all ranks, or on four of them short ones beside data ranks and shards."""
    return [GridShape(2, 2, 1), GridShape(1, 2, 2)] if comm.size == 4 else [GridShape(1, comm.size, 1)]


@pytest.mark.mpi
@pytest.mark.parametrize("case", FAMILIES)
def test_schedules_and_recomputation_change_no_bit(comm: MPI.Intracomm, case: str) -> None:
    micro_batches = 1 if case == "resnet" else 3
    for shape in pipelines(comm):
        digest, found, weights = do_run(comm, case, configured(case, shape, micro_batches))
        for keys in ({"schedule": "gpipe"}, {"schedule": "zero_bubble", "recompute": True}):
            other = do_run(comm, case, configured(case, shape, micro_batches, **keys))
            assert other[:2] == (digest, found), (shape, keys)
        if comm.rank == 0:
            require_close(weights, alone(case, micro_batches)[2])


@pytest.mark.mpi
@pytest.mark.parametrize("case", FAMILIES)
def test_interleaved_virtual_stages_train_as_one_stage(comm: MPI.Intracomm, case: str) -> None:
    micro_batches, shape = 1 if case == "resnet" else 3, GridShape(1, comm.size, 1)
    config, splits = CASES[case]
    model = declare_model(config.model, describe_data(comm, config.model, splits.train, splits.test))
    virtual_stages = max(v for v in (1, 2, 3) if v * comm.size <= model.max_stages)
    keys = {"schedule": "interleaved", "virtual_stages": virtual_stages}
    digest, found, weights = do_run(comm, case, configured(case, shape, micro_batches, **keys))
    again = do_run(comm, case, configured(case, shape, micro_batches, recompute=True, recompute_stages=(0,), **keys))
    assert again[:2] == (digest, found), virtual_stages
    if comm.rank == 0:
        require_close(weights, alone(case, micro_batches)[2])


@pytest.mark.mpi
def test_stages_cut_by_measured_costs_train_as_one(comm: MPI.Intracomm) -> None:
    _, _, weights = do_run(comm, "gpt", configured("gpt", GridShape(1, comm.size, 1), 3, balance="measure"))
    if comm.rank == 0:
        require_close(weights, alone("gpt", 3)[2])


def require_close(weights: dict[str, NDArray[np.float32] | None], expected: dict[str, NDArray[np.float32] | None]) -> None:
    assert weights.keys() == expected.keys()
    for name, whole in weights.items():
        reference = expected[name]
        assert whole is not None
        assert reference is not None
        np.testing.assert_allclose(whole, reference, rtol=0, atol=2e-4 * max(np.abs(reference).max(), 0.05), err_msg=name)
