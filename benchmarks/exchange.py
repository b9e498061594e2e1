"""Gradient exchange plus SGD update on one node: lepton_mpi's shared memory against MPI_Allreduce.

    python benchmarks/exchange.py                    # starts itself on 2 and on 4 ranks, prints one JSON list
    mpirun -n 2 python benchmarks/exchange.py        # on these ranks, prints one JSON object

Both sides start from the same gradients, use the same compiled SGD kernel, and must end with the same
weights to rounding. They take turns, so that a drift of the machine meets both alike. A time is
that of the slowest rank, from a barrier until the new weights may be read.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime

from lepton_mpi.runtime.mpi import MPI, launched_ranks, mpi_library, start_mpi
from lepton_mpi.runtime.threads import limit_threads, usable_cores

limit_threads(1)  # before NumPy is loaded

import numpy as np  # noqa: E402

from lepton_mpi.comm.grid import GridShape, ProcessGrid  # noqa: E402
from lepton_mpi.nn.initial import Uniform  # noqa: E402
from lepton_mpi.nn.parameter import ParameterLayout, ParameterSpec, cut_parameter  # noqa: E402
from lepton_mpi.ops.sgd_update import sgd_update  # noqa: E402
from lepton_mpi.parallel.gradient_exchange import GradientExchange, bucket_bounds  # noqa: E402
from lepton_mpi.parallel.node_parameters import NodeParameters  # noqa: E402

LR = 0.1


class SharedSide:
    """The path of a training step: buckets, in-node sum, update of the owned slices, publish."""

    def __init__(self, grid: ProcessGrid, num_values: int, bucket_mib: float, slots: tuple[str, ...]) -> None:
        self.layout = ParameterLayout([cut_parameter(ParameterSpec("w", (num_values,), initial=Uniform(1.0)), 1, 0)])
        bounds = bucket_bounds(num_values, bucket_mib)
        place = (0, 0)
        self.memory = NodeParameters(grid, {place: self.layout}, slots, {place: bounds}, np)
        self.memory.initialise(grid, seed=1)
        spin = grid.size <= usable_cores()
        self.exchange = GradientExchange(grid, self.memory, "exact", timeout_s=60, spin=spin)
        self.grad = self.memory.grads[grid.data_in_node.Get_rank()]
        self.momentum = 0.9 if slots else 0.0

    def step(self) -> None:
        self.exchange.finish()
        for s in self.exchange.owned_slices:
            here = slice(s.start, s.stop)
            momentum = self.memory.slots["momentum"][here] if self.momentum else None
            sgd_update(self.memory.values[here], self.grad[here], momentum, lr=LR, momentum=self.momentum)
        self.exchange.publish()


class PlainSide:
    """What a trainer on plain MPI does: MPI_Allreduce in place, then every rank updates its own copy."""

    def __init__(self, comm: MPI.Intracomm, values: np.ndarray, momentum: bool) -> None:
        self.comm = comm
        self.values = values.copy()
        self.grad = np.zeros_like(values)
        self.slot = np.zeros_like(values) if momentum else None

    def step(self) -> None:
        self.comm.Allreduce(MPI.IN_PLACE, self.grad, MPI.SUM)
        sgd_update(self.values, self.grad, self.slot, lr=LR, momentum=0.9 if self.slot is not None else 0.0)


def time_step(comm: MPI.Intracomm, side: SharedSide | PlainSide) -> float:
    comm.Barrier()
    start = MPI.Wtime()
    side.step()
    return float(comm.allreduce(MPI.Wtime() - start, op=MPI.MAX))


def measure(comm: MPI.Intracomm, arguments: argparse.Namespace) -> dict[str, object]:
    num_values = int(arguments.mb * 1e6 / 4)
    grid = ProcessGrid(comm, GridShape(comm.Get_size(), 1, 1))
    shared = SharedSide(grid, num_values, arguments.bucket_mib, ("momentum",) if arguments.momentum else ())
    plain = PlainSide(comm, shared.memory.values, arguments.momentum)
    random = np.random.default_rng(comm.Get_rank())
    grad = random.standard_normal(num_values, np.float32)
    times: dict[str, list[float]] = {"shared": [], "plain": []}
    for repeat in range(arguments.repeats + arguments.warm_up):
        for name, side in (("shared", shared), ("plain", plain)):
            side.grad[:] = grad  # just before, as a backward pass leaves it
            seconds = time_step(comm, side)
            if repeat >= arguments.warm_up:
                times[name].append(seconds)
    difference = float(np.abs(shared.memory.values - plain.values).max())
    largest = float(np.abs(plain.values).max())
    if not difference <= 1e-5 * largest:
        raise SystemExit(f"the two sides disagree: weights differ by {difference}, the largest is {largest}")
    medians = {name: float(np.median(values)) for name, values in times.items()}
    ratios = np.array(times["plain"]) / np.array(times["shared"])
    return {
        "benchmark": "exchange",
        "ranks": comm.Get_size(),
        "cores": usable_cores(),
        "nbytes": num_values * 4,
        "momentum": arguments.momentum,
        "bucket_mib": arguments.bucket_mib,
        "repeats": arguments.repeats,
        "shared_ms": medians["shared"] * 1e3,
        "allreduce_ms": medians["plain"] * 1e3,
        "ratio": medians["plain"] / medians["shared"],
        "ratio_of_pairs": {"min": ratios.min(), "median": float(np.median(ratios)), "max": ratios.max()},
        "largest_difference": difference,
        "mpi": mpi_library(),
        "machine": platform.machine(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=40.0, help="size of the gradient, 10^6 bytes (40)")
    parser.add_argument("--bucket-mib", type=float, default=4.0, help="size of a bucket, MiB (4)")
    parser.add_argument("--momentum", action="store_true", help="SGD with momentum")
    parser.add_argument("--repeats", type=int, default=40, help="measured repeats (40)")
    parser.add_argument("--warm-up", type=int, default=5, help="repeats before (5)")
    return parser.parse_args()


def main() -> None:
    arguments = read_arguments()
    if launched_ranks() == 1 and "OMPI_COMM_WORLD_SIZE" not in os.environ and "PMI_SIZE" not in os.environ:
        results = []
        for ranks in ("2", "4"):
            command = ["mpirun", "-n", ranks, sys.executable, __file__, *sys.argv[1:]]
            results.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
        print(json.dumps(results, indent=2))
        return
    comm = start_mpi().Dup()
    result = measure(comm, arguments)
    if comm.Get_rank() == 0:
        print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
