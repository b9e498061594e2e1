"""How long the stages of a pipeline wait: measured against the formula of each schedule.

    python benchmarks/pipeline.py                 # starts itself on 4 and on 8 ranks, prints one JSON list
    mpirun -n 4 python benchmarks/pipeline.py     # on these ranks, prints one JSON object

The layers sleep for a set time in each pass instead of computing, so that stages overlap on any number of cores; all else is
the executor of training and MPI. Exits with 1 where a measured share differs from the formula by more than 5 points.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from lepton_mpi.runtime.mpi import launched_ranks, mpi_library, start_mpi
from lepton_mpi.runtime.threads import limit_threads, usable_cores

limit_threads(1)  # before NumPy is loaded

import numpy as np  # noqa: E402

from lepton_mpi.comm.grid import GridShape, ProcessGrid  # noqa: E402
from lepton_mpi.models.family import DataShape, ModelSpec  # noqa: E402
from lepton_mpi.models.task import TASKS  # noqa: E402
from lepton_mpi.nn.layer import Layer  # noqa: E402
from lepton_mpi.nn.losses import MeanSquaredError  # noqa: E402
from lepton_mpi.nn.module import Context, Module  # noqa: E402
from lepton_mpi.nn.parameter import Parameter  # noqa: E402
from lepton_mpi.nn.place import Place  # noqa: E402
from lepton_mpi.parallel.grid_place import place_on  # noqa: E402
from lepton_mpi.parallel.pipeline import MicroBatches, Pipeline  # noqa: E402
from lepton_mpi.parallel.placement import divide_model, plan_stage  # noqa: E402
from lepton_mpi.parallel.schedules.registry import SCHEDULES  # noqa: E402
from lepton_mpi.parallel.schedules.schedule import PassCosts, PipelineShape  # noqa: E402
from lepton_mpi.parallel.schedules.simulation import simulate  # noqa: E402
from lepton_mpi.parallel.stage import CompleteFrom, build_stages  # noqa: E402

ROWS, FEATURES = 2, 8
TOLERANCE = 0.05
# (schedule, virtual stages)
KINDS = [("gpipe", 1), ("1f1b", 1), ("zero_bubble", 1), ("interleaved", 2)]


@dataclass(frozen=True)
class Sleeper(Layer):
    """The identity, which takes its time.

    Attributes:
        costs: seconds of each pass.
    """

    costs: PassCosts = PassCosts()  # noqa: RUF009 - frozen

    def build(self, parameters: Mapping[str, Parameter], place: Place) -> Module:
        return SleeperModule(self.costs)


class SleeperModule(Module):
    """Sleeps, and adds up how long it really took."""

    busy_s = 0.0  # of all layers of this rank

    def __init__(self, costs: PassCosts) -> None:
        self._costs = costs

    @staticmethod
    def sleep(seconds: float) -> None:
        begin = time.perf_counter()
        time.sleep(seconds)
        SleeperModule.busy_s += time.perf_counter() - begin

    def forward(self, x: Any, context: Context) -> tuple[Any, Any]:
        self.sleep(self._costs.forward)
        return x, None

    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        self.sleep(self._costs.backward_input)
        return dy, None

    def backward_weight(self, pending: Any) -> None:
        self.sleep(self._costs.backward_weight)


def measure(
    grid: ProcessGrid, name: str, virtual_stages: int, micro_batches: int, costs: PassCosts, repeats: int
) -> dict[str, Any]:
    """Return the idle share of the fastest of some steps beside what the formula and the simulation say. Collective."""
    stages = grid.shape.stages
    chunk = PassCosts(*(cost / virtual_stages for cost in (costs.forward, costs.backward_input, costs.backward_weight)))
    layers = tuple(Sleeper(str(i), chunk) for i in range(stages * virtual_stages))
    model = ModelSpec("sleeping", TASKS["regression"], DataShape((FEATURES,), 0, (FEATURES,)), layers)
    division = divide_model(model, stages, virtual_stages, costs=[1.0] * len(layers))
    plan = plan_stage(model, stages, 1, grid.stage_index, 0, division=division)
    virtual = build_stages(plan, (), place_on(grid, 0, "fp32"), grid.is_first_stage)
    pipeline = Pipeline(grid, virtual, plan, np, schedule=SCHEDULES[name])
    arrays = [np.ones((ROWS, FEATURES), np.float32)] * micro_batches
    firsts = [ROWS * m for m in range(micro_batches)]
    batch = MicroBatches([ROWS] * micro_batches, firsts, arrays, arrays, ROWS * micro_batches)
    best: tuple[float, float] | None = None
    for _ in range(repeats + 1):  # the first one connects the ranks
        grid.world.Barrier()
        SleeperModule.busy_s, begin = 0.0, time.perf_counter()
        pipeline.train(batch, MeanSquaredError(), 1.0, CompleteFrom(plan.layer_starts, micro_batches, lambda offset: None))
        own = (time.perf_counter() - begin, SleeperModule.busy_s)
        makespan, busy = (np.array(column) for column in zip(*grid.world.allgather(own), strict=True))
        found = (float(makespan.max()), float(busy.mean()))
        best = found if best is None else min(best, found)
    assert best is not None
    shape = PipelineShape(stages, micro_batches, virtual_stages)
    formula, measured = SCHEDULES[name].bubble(shape, chunk), 1.0 - best[1] / best[0]
    return {
        "schedule": name,
        **asdict(shape),
        "bubble_formula": round(formula, 4),
        "bubble_simulated": round(simulate(SCHEDULES[name], shape, chunk).bubble, 4),
        "bubble_measured": round(measured, 4),
        "step_s": round(best[0], 4),
        "agrees": abs(measured - formula) <= TOLERANCE,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 8], help="stages, one job each (4 8)")
    parser.add_argument("--micro-batches", type=int, default=8, help="pieces of a batch (8)")
    parser.add_argument("--pass-ms", type=float, default=30.0, help="milliseconds of each of the three passes of a stage (30)")
    parser.add_argument("--repeats", type=int, default=3, help="steps, the fastest of which counts (3)")
    arguments = parser.parse_args()
    if launched_ranks() == 1:
        results = []
        for ranks in arguments.ranks:
            command = ["mpirun", "-n", str(ranks), sys.executable, __file__, *sys.argv[1:]]
            job = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if not job.stdout:
                raise SystemExit(f"the job on {ranks} ranks printed nothing")
            results.append(json.loads(job.stdout))
        print(json.dumps(results, indent=2))
        return int(not all(kind["agrees"] for result in results for kind in result["kinds"]))
    world = start_mpi()
    grid = ProcessGrid(world, GridShape(1, world.Get_size(), 1))
    costs = PassCosts(*[arguments.pass_ms / 1e3] * 3)
    kinds = [measure(grid, *kind, arguments.micro_batches, costs, arguments.repeats) for kind in KINDS]
    if grid.rank == 0:
        result = {
            "benchmark": "pipeline",
            "ranks": grid.size,
            "cores": usable_cores(),
            "load_average": os.getloadavg()[0],
            "mpi": mpi_library(),
            "pass_ms": arguments.pass_ms,
            "kinds": kinds,
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        }
        print(json.dumps(result, indent=2))
    grid.free()
    return 0  # the process that started the ranks looks at the result


if __name__ == "__main__":
    sys.exit(main())
