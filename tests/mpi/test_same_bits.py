"""With train.reproducible every grid finds the same bits: losses, norms, weights, metrics.

One rank alone finds what all others must find. On 1 to 4 ranks the grids of just so many are tried, on more those of more than 4.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_families import CASES
from small_runs import do_steps, facts, on_grid, running

from lepton_mpi.comm.agreement import do_on_root
from lepton_mpi.comm.grid import GridShape
from lepton_mpi.config.schema import Config
from lepton_mpi.errors import ConfigError
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.train.inference import evaluate
from lepton_mpi.train.resume import load, save
from lepton_mpi.train.state import TrainState

NUM_STEPS = 5  # an epoch of 8, 8 and 4 samples, and most of the next
_NAMES = "1x1x1 2x1x1 3x1x1 4x1x1 5x1x1 1x2x1 1x4x1 1x1x2 1x1x3 1x1x4 2x2x1 2x1x2 1x2x2 2x2x2 4x2x2"
GRIDS = [GridShape(*map(int, name.split("x"))) for name in _NAMES.split()]
# Heads and layers enough for four shards and stages; six heads make uneven chunks.
SIZES: dict[str, dict[str, Any]] = {
    "gpt": {"num_heads": 6, "width": 24, "num_layers": 4},
    "llama": {"num_heads": 8, "num_kv_heads": 4, "width": 32, "num_layers": 4},
    "bert": {"num_heads": 6, "width": 24, "num_layers": 4},
    "bert-masked": {"num_heads": 6, "width": 24, "num_layers": 4},
}
MOST_STAGES = {"linear": 1, "recommender-regression": 1, "recommender-binary": 2, "recommender-ranking": 2}
SCHEDULES = ("gpipe", "interleaved", "zero_bubble")


@dataclass(frozen=True)
class Found:
    """What a run found, times left out; equal texts have equal bits."""

    steps: str
    weights: str
    metrics: str


def config_of(case: str, **train: Any) -> Config:
    config = CASES[case][0]
    config = replace(config, model=replace(config.model, **SIZES.get(case, {})))
    return replace(config, train=replace(config.train, **{"reproducible": True, "micro_batches": 0, **train}))


def do_run(comm: MPI.Intracomm, case: str, config: Config) -> Found:
    with running(comm, config, CASES[case][1]) as run:
        _, steps = do_steps(run, TrainState(), NUM_STEPS)
        assert run.test_loader is not None
        return Found(facts(steps), run.network.weights.sha256(), repr(evaluate(run.network, run.test_loader).values))


@cache
def alone(case: str) -> Found:
    comm = MPI.COMM_SELF.Dup()
    found = do_run(comm, case, on_grid(config_of(case), GridShape(1, 1, 1)))
    comm.Free()
    return found


def is_tried(shape: GridShape, case: str, num_ranks: int) -> bool:
    fits = shape.num_ranks == num_ranks if num_ranks <= 4 else 4 < shape.num_ranks <= num_ranks
    return fits and shape.stages <= MOST_STAGES.get(case, 4)


def require_same(comm: MPI.Intracomm, case: str, shape: GridShape, config: Config) -> None:
    reference = do_on_root(comm, lambda: alone(case))
    members = comm.Split(int(comm.rank >= shape.num_ranks), comm.rank)
    if comm.rank < shape.num_ranks:
        assert do_run(members, case, on_grid(config, shape)) == reference
    members.Free()


@pytest.mark.mpi
@pytest.mark.timeout_s(600)
@pytest.mark.parametrize("case", CASES)
def test_every_grid_finds_the_same_bits(comm: MPI.Intracomm, case: str) -> None:
    for shape in GRIDS:
        if is_tried(shape, case, comm.size):
            require_same(comm, case, shape, config_of(case))


@pytest.mark.mpi
@pytest.mark.timeout_s(600)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("case", ["gpt", "mlp", "resnet"])
def test_every_schedule_finds_the_same_bits(comm: MPI.Intracomm, case: str, schedule: str) -> None:
    for shape in GRIDS:
        if (
            is_tried(shape, case, comm.size)
            and shape.stages > 1
            and (schedule != "interleaved" or case != "mlp" or shape.stages < 3)
        ):
            require_same(comm, case, shape, config_of(case, schedule=schedule, recompute=schedule == "gpipe"))


@pytest.mark.mpi
@pytest.mark.parametrize("ranks_per_node", [1, 2])
@pytest.mark.parametrize("shard", ["node", "data"])
def test_nodes_make_no_difference(comm: MPI.Intracomm, ranks_per_node: int, shard: str) -> None:
    config = config_of("gpt")
    config = replace(config, optimizer=replace(config.optimizer, shard=shard))
    shape = GridShape(comm.size, 1, 1)
    reference = do_on_root(comm, lambda: alone("gpt"))
    assert do_run(comm, "gpt", on_grid(config, shape, ranks_per_node)) == reference


@pytest.mark.mpi
@pytest.mark.parametrize("case", ["gpt", "resnet"])
def test_a_run_that_changes_its_grid_twice(comm: MPI.Intracomm, folder: Path, case: str) -> None:
    shapes = [shape for shape in GRIDS if shape.num_ranks <= comm.size][-3:]
    shapes = (shapes * 3)[:3]
    reference = do_on_root(comm, lambda: alone(case))
    steps, path = [], None
    for number, (shape, num_steps) in enumerate(zip(shapes, (2, 1, 2), strict=True)):
        members = comm.Split(int(comm.rank >= shape.num_ranks), comm.rank)
        if comm.rank < shape.num_ranks:
            with running(members, on_grid(config_of(case), shape), CASES[case][1]) as run:
                state = load(run.network, path, extras=run.extras)[0] if path else TrainState()
                state, done = do_steps(run, state, num_steps)
                steps += done
                path = save(run.network, run.normalisation, state, folder / str(number), "direct", run.extras)
                digest = run.network.weights.sha256()
        members.Free()
        path = comm.bcast(path)
    if comm.rank == 0:
        assert digest == reference.weights
        assert facts(steps) == reference.steps


@pytest.mark.mpi
@pytest.mark.parametrize("exponent", [-120, 40], ids=["overflow", "too-coarse"])
def test_units_that_do_not_fit_are_found_and_the_step_is_done_again(comm: MPI.Intracomm, exponent: int) -> None:
    config = on_grid(config_of("mlp"), GridShape(comm.size, 1, 1))
    found = []
    for first in (exponent, -60):
        with running(comm, config, CASES["mlp"][1]) as run:
            totals, passes = run.network.totals, []
            totals.exponents[:] = first
            settle = totals.settle
            totals.settle = lambda settle=settle, passes=passes: passes.append(settle()) or passes[-1]
            _, steps = do_steps(run, TrainState(), 3)
            found.append((facts(steps), run.network.weights.sha256()))
        if first == exponent:
            assert passes == [False, True, True, True]
    assert found[0] == found[1]


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"reduce": {"mode": "bf16"}}, "reduce.mode"),
        ({"train": {"virtual_chunks": 1}}, "train.virtual_chunks"),
        ({"run": {"threads": 2}}, "run.threads"),
        ({"optimizer": {"name": "onebit_adam"}}, "optimizer.name"),
    ],
)
def test_what_cannot_be_reproducible_is_refused(comm: MPI.Intracomm, sections: dict[str, dict[str, Any]], key: str) -> None:
    config = on_grid(config_of("mlp"), GridShape(1, 1, comm.size))
    for name, values in sections.items():
        config = replace(config, **{name: replace(getattr(config, name), **values)})
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")), running(comm, config, CASES["mlp"][1]):
        pass


@pytest.mark.mpi
def test_the_fast_mode_repeats_itself_on_the_same_grid(comm: MPI.Intracomm) -> None:
    config = on_grid(config_of("gpt", reproducible=False), GridShape(comm.size, 1, 1))
    first, second = (do_run(comm, "gpt", config) for _ in range(2))
    assert first == second


@pytest.mark.mpi
def test_the_norm_is_that_of_the_gradient(comm: MPI.Intracomm) -> None:
    """Exact sums are near those of the fast mode: not only equal to each other."""
    found = []
    for reproducible in (True, False):
        config = on_grid(config_of("gpt", reproducible=reproducible), GridShape(comm.size, 1, 1))
        with running(comm, config, CASES["gpt"][1]) as run:
            _, steps = do_steps(run, TrainState(), 3)
            found.append([(m.loss, m.grad_norm) for m in steps])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)
