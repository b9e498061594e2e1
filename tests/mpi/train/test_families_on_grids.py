"""Every family trains alike on every grid: losses, weights, running statistics, metrics."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from small_families import CASES
from small_runs import do_steps, facts, on_grid, running

from lepton_mpi.comm.agreement import do_on_root
from lepton_mpi.comm.grid import GridShape
from lepton_mpi.config.schema import Config
from lepton_mpi.data.splits import DataSplits
from lepton_mpi.monitor.metrics import Evaluation
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.train.inference import evaluate
from lepton_mpi.train.network import declare_model
from lepton_mpi.train.run import describe_data
from lepton_mpi.train.state import TrainState
from lepton_mpi.train.step import StepMetrics

NUM_STEPS = 6  # two epochs of 8, 8 and 4 samples
FEW_LAYERS = ("linear", "recommender-regression")  # not enough for three stages
every_case = pytest.mark.parametrize("case", CASES)


@dataclass(frozen=True)
class Result:
    """What a run found; the weights are on rank 0 alone."""

    steps: list[StepMetrics]
    evaluation: Evaluation
    weights: dict[str, NDArray[np.float32] | None]
    digest: str


def do_run(comm: MPI.Intracomm, config: Config, splits: DataSplits) -> Result:
    with running(comm, config, splits) as run:
        _, steps = do_steps(run, TrainState(), NUM_STEPS)
        assert run.test_loader is not None
        weights = run.network.weights
        return Result(
            steps, evaluate(run.network, run.test_loader), {n: weights.gather(n) for n in weights.names}, weights.sha256()
        )


@cache
def alone(case: str) -> Result:
    """Return what one rank finds."""
    comm = MPI.COMM_SELF.Dup()
    found = do_run(comm, on_grid(CASES[case][0], GridShape(1, 1, 1)), CASES[case][1])
    comm.Free()
    return found


def shapes_of(comm: MPI.Intracomm, shapes: list[GridShape], case: str) -> list[GridShape]:
    """Return the grids that a model fits."""
    config, splits = CASES[case]
    model = declare_model(config.model, describe_data(comm, config.model, splits.train, splits.test))
    found = [s for s in shapes if s.stages <= model.max_stages and s.shards <= model.max_shards]
    assert found == shapes or case in FEW_LAYERS or comm.size > 3
    return found


def require_alike(comm: MPI.Intracomm, case: str, config: Config) -> Result:
    """Run, and require what one rank found, up to rounding, and the same on all ranks, to the bit."""
    reference = do_on_root(comm, lambda: alone(case))
    found, grid = do_run(comm, config, CASES[case][1]), str(config.grid)
    for name in ("loss", "grad_norm", "accuracy"):
        values, expected = ([getattr(m, name) for m in result.steps] for result in (found, reference))
        np.testing.assert_allclose(values, expected, rtol=1e-4 if name != "grad_norm" else 1e-3, err_msg=f"{name} on {grid}")
    assert found.evaluation.values == pytest.approx(reference.evaluation.values, rel=1e-4, nan_ok=True), grid
    for name, whole in found.weights.items():
        if whole is not None:
            expected = reference.weights[name]
            assert expected is not None
            np.testing.assert_allclose(
                whole, expected, rtol=0, atol=2e-4 * max(np.abs(expected).max(), 0.05), err_msg=f"{name} on {grid}"
            )
    assert len(set(comm.allgather(facts(found.steps) + repr((found.evaluation, found.digest))))) == 1, grid
    return found


@pytest.mark.mpi
@every_case
def test_all_grids_train_alike_and_a_rerun_has_the_same_bits(comm: MPI.Intracomm, grid_shapes: list[GridShape], case: str) -> None:
    for shape in shapes_of(comm, grid_shapes, case):
        config = on_grid(CASES[case][0], shape)
        found, again = require_alike(comm, case, config), do_run(comm, config, CASES[case][1])
        assert again.digest == found.digest, shape
        assert facts(again.steps) + repr(again.evaluation) == facts(found.steps) + repr(found.evaluation), shape


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("case", ["resnet", "gpt", "bert"])
def test_simulated_nodes_train_alike(comm: MPI.Intracomm, grid_shapes: list[GridShape], case: str) -> None:
    for shape in shapes_of(comm, grid_shapes, case):
        if shape.data > 1:
            require_alike(comm, case, on_grid(CASES[case][0], shape, ranks_per_node=1))


@pytest.mark.mpi
@pytest.mark.parametrize("case", ["gpt", "bert"])
def test_dropout_is_at_work_and_follows_the_seed(comm: MPI.Intracomm, case: str) -> None:
    config, splits = CASES[case]
    config = on_grid(config, GridShape(comm.size, 1, 1))
    losses = []
    for changed in (config, replace(config, model=replace(config.model, dropout=0.0))):
        with running(comm, changed, splits) as run:
            losses.append([m.loss for m in do_steps(run, TrainState(), 2)[1]])
    assert losses[0][0] != losses[1][0]  # the same weights and batch


@pytest.mark.mpi
def test_every_family_learns(comm: MPI.Intracomm) -> None:
    found = do_on_root(comm, lambda: {case: [m.loss for m in alone(case).steps] for case in CASES})
    for case, losses in found.items():
        assert min(losses[3:]) < losses[0], case


@pytest.mark.mpi(min_size=2)
def test_running_statistics_pass_no_codec(comm: MPI.Intracomm) -> None:
    """With a lossy exchange between nodes, the statistics after a step are those of the exact one; the weights are not."""
    config, splits = CASES["resnet"]
    found = {}
    for mode in ("exact", "int8"):
        lossy = replace(config, reduce=replace(config.reduce, mode=mode))
        with running(comm, on_grid(lossy, GridShape(comm.size, 1, 1), 1), splits) as run:
            do_steps(run, TrainState(), 1)
            names = {spec.name: spec.role for spec in run.network.model.parameters}
            found[mode] = {name: run.network.weights.gather(name) for name in run.network.weights.names}
    if comm.rank == 0:
        same = {name: np.array_equal(found["exact"][name], found["int8"][name]) for name in names}
        assert all(same[name] for name, role in names.items() if role == "statistic")
        assert not all(same[name] for name, role in names.items() if role == "weight")
