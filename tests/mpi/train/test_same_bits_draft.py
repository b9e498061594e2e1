"""With train.reproducible every grid ends with the same bits: weights, losses, norms, metrics."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from small_families import CASES
from small_runs import do_steps, on_grid, running

from lepton_mpi.comm.agreement import do_on_root
from lepton_mpi.comm.grid import GridShape
from lepton_mpi.config.schema import Config
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.train.inference import evaluate
from lepton_mpi.train.state import TrainState

NUM_STEPS = 5
GRIDS = [
    GridShape(*map(int, text.split("x")))
    for text in (
        "1x1x1 2x1x1 3x1x1 4x1x1 5x1x1 1x2x1 1x4x1 1x1x2 1x1x4 2x2x1 2x1x2 1x2x2 2x2x2 4x2x2 1x3x1 1x1x3".split()
    )
]
SIZES = {
    "gpt": {"num_heads": 6, "width": 24, "num_layers": 4},
    "llama": {"num_heads": 8, "num_kv_heads": 4, "width": 32, "num_layers": 4},
    "bert": {"num_heads": 6, "width": 24, "num_layers": 4},
    "bert-masked": {"num_heads": 6, "width": 24, "num_layers": 4},
}


def config_of(case: str) -> Config:
    config = CASES[case][0]
    config = replace(config, model=replace(config.model, **SIZES.get(case, {})))
    return replace(config, train=replace(config.train, reproducible=True, micro_batches=0))


def do_run(comm: MPI.Intracomm, case: str, config: Config) -> tuple[str, list[tuple[float, float]], dict[str, float]]:
    with running(comm, config, CASES[case][1]) as run:
        _, steps = do_steps(run, TrainState(), NUM_STEPS)
        assert run.test_loader is not None
        values = evaluate(run.network, run.test_loader).values
        return run.network.weights.sha256(), [(m.loss, m.grad_norm) for m in steps], values


@cache
def alone(case: str):
    comm = MPI.COMM_SELF.Dup()
    found = do_run(comm, case, on_grid(config_of(case), GridShape(1, 1, 1)))
    comm.Free()
    return found


@pytest.mark.mpi
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", GRIDS, ids=str)
def test_same_bits(comm: MPI.Intracomm, case: str, shape: GridShape) -> None:
    if shape.num_ranks > comm.size or (comm.size <= 4 and shape.num_ranks < comm.size):
        pytest.skip("another number of ranks")
    if case == "linear" and shape.stages > 1 or case.startswith("recommender") and shape.stages > 2:
        pytest.skip("too few layers")
    reference = do_on_root(comm, lambda: alone(case))
    members = comm.Split(0 if comm.rank < shape.num_ranks else 1, comm.rank)
    if comm.rank < shape.num_ranks:
        found = do_run(members, case, on_grid(config_of(case), shape))
        assert found[1] == reference[1]
        assert found[0] == reference[0]
        assert found[2] == reference[2]
    members.Free()
