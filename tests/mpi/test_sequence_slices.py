"""With grid.sequence shards divide the positions of what lies between divided layers: moves, results, memory, refusals."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from small_families import CASES
from small_runs import do_steps, facts, on_grid, running

from lepton_mpi.comm.agreement import do_on_root
from lepton_mpi.comm.grid import GridShape
from lepton_mpi.config.schema import Config
from lepton_mpi.errors import ConfigError
from lepton_mpi.parallel.sequence_moves import GatherPositions, ScatterSum
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.runtime.ranges import ShardCut
from lepton_mpi.train.inference import evaluate
from lepton_mpi.train.state import TrainState

NUM_STEPS = 4
GRIDS = [GridShape(*map(int, name.split("x"))) for name in ["1x1x1", "1x1x2", "1x1x3", "1x1x4", "2x1x2", "1x2x2"]]
SIZES: dict[str, dict[str, Any]] = {
    "gpt": {"num_heads": 6, "width": 24, "num_layers": 2, "dropout": 0.1},
    "llama": {"num_heads": 8, "num_kv_heads": 4, "width": 32, "num_layers": 2, "dropout": 0.1},
}


def config_of(case: str, shape: GridShape, reproducible: bool, sequence: bool) -> Config:
    config = on_grid(CASES[case][0], shape)
    config = replace(config, model=replace(config.model, **SIZES[case]))
    config = replace(config, train=replace(config.train, reproducible=reproducible, micro_batches=0))
    return replace(config, grid=replace(config.grid, sequence=sequence))


def do_run(comm: MPI.Intracomm, case: str, config: Config) -> tuple[str, list[float], str, str]:
    with running(comm, config, CASES[case][1]) as run:
        _, steps = do_steps(run, TrainState(), NUM_STEPS)
        assert run.test_loader is not None
        values = repr(evaluate(run.network, run.test_loader).values)
        numbers = [number for step in steps for number in (step.loss, step.grad_norm)]
        return facts(steps), numbers, run.network.weights.sha256(), values


@cache
def alone(case: str, reproducible: bool, sequence: bool) -> tuple[str, list[float], str, str]:
    comm = MPI.COMM_SELF.Dup()
    found = do_run(comm, case, config_of(case, GridShape(1, 1, 1), reproducible, sequence))
    comm.Free()
    return found


@pytest.mark.mpi
@pytest.mark.timeout_s(300)
@pytest.mark.parametrize("case", ["gpt", "llama"])
@pytest.mark.parametrize("reproducible", [False, True])
def test_every_grid_finds_the_same(comm: MPI.Intracomm, case: str, reproducible: bool) -> None:
    for shape in GRIDS:
        if shape.num_ranks == comm.size:
            reference = do_on_root(comm, lambda: alone(case, reproducible, reproducible))
            found = do_run(comm, case, config_of(case, shape, reproducible, True))
            assert found[1] == pytest.approx(reference[1], rel=1e-4)
            if reproducible:
                assert found == reference  # weights and metrics, too, to the bit
                near = do_on_root(comm, lambda: alone(case, True, False))
                assert found[1] == pytest.approx(near[1], rel=1e-4)


@pytest.mark.mpi
@pytest.mark.parametrize("num_positions", [3, 8, 11])
@pytest.mark.parametrize("chunks", [0, 5])
def test_the_moves_are_adjoint_to_each_other(comm: MPI.Intracomm, num_positions: int, chunks: int) -> None:
    cut = ShardCut(comm.size, chunks)
    parts = cut.num_chunks(7)
    first, last = cut.own_chunks(comm.rank, 7)
    start, stop = cut.share(comm.rank, num_positions)
    random = np.random.default_rng([4, comm.rank])
    x = random.standard_normal((2, stop - start, 6))
    y = list(random.standard_normal((last - first, 2, num_positions, 6)))
    gather, scatter = (kind(comm, cut, parts).of(num_positions) for kind in (GatherPositions, ScatterSum))
    whole = gather.forward(x)
    assert whole.shape == (2, num_positions, 6)
    np.testing.assert_array_equal(whole[:, start:stop], x)
    left = comm.allreduce(sum(float((whole * part).sum()) for part in y))
    total = comm.allreduce(sum(y))
    summed = gather.adjoint([part.copy() for part in y])
    np.testing.assert_allclose(summed, total[:, start:stop], rtol=1e-12, atol=1e-14)
    assert comm.allreduce(float((x * summed).sum())) == pytest.approx(left, rel=1e-11) and abs(left) > 1e-3
    np.testing.assert_array_equal(scatter.forward([part.copy() for part in y]), summed)
    np.testing.assert_array_equal(scatter.adjoint(x), whole)


@pytest.mark.mpi
@pytest.mark.parametrize("case", ["mlp", "bert", "resnet"])
def test_models_without_slices_of_positions_refuse(comm: MPI.Intracomm, case: str) -> None:
    config = on_grid(CASES[case][0], GridShape(1, 1, comm.size))
    config = replace(config, grid=replace(config.grid, sequence=True))
    with pytest.raises(ConfigError, match=r"grid\.sequence.*leave it out"), running(comm, config, CASES[case][1]):
        pass
