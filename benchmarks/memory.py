"""Bytes of a rank for weights, gradients, optimizer state and activations: measured and predicted, grid by grid.

    python benchmarks/memory.py                  # starts itself on 1, 4 and 16 ranks, prints one JSON list
    mpirun -n 4 python benchmarks/memory.py      # on these ranks, prints one JSON object

Weights, gradients and optimizer state are measured as the memory that the ranks of a node really take together: the kernel
counts a page that several processes map once (proportional set size, /proc/PID/smaps). Activations are the arrays that the
executor holds between passes, found by following what it keeps. What is predicted follows from the sizes of the model and from
the schedule on paper, without any message. Exits with 1 where a measured number is more than 2 percent (or 64 KiB a rank, for
pages) off, or where the ranks of a node hold more than one copy of the weights. The memory of a rank that is alone comes in huge
pages, which weights, gradients and state may share: there the sum of the three is held to that, and each to one at either end.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lepton_mpi.runtime.mpi import launched_ranks, start_mpi
from lepton_mpi.runtime.threads import limit_threads

limit_threads(1)  # before NumPy is loaded

import numpy as np  # noqa: E402

from lepton_mpi.config.schema import Config  # noqa: E402
from lepton_mpi.models.family import DataShape  # noqa: E402
from lepton_mpi.nn.losses import SoftmaxCrossEntropy  # noqa: E402
from lepton_mpi.nn.module import Context  # noqa: E402
from lepton_mpi.nn.move import AddParts, Move, Replicate  # noqa: E402
from lepton_mpi.nn.place import Place  # noqa: E402
from lepton_mpi.parallel.node_parameters import NodeParameters  # noqa: E402
from lepton_mpi.parallel.pipeline import MicroBatches  # noqa: E402
from lepton_mpi.parallel.placement import plan_stage  # noqa: E402
from lepton_mpi.parallel.schedules.registry import SCHEDULES  # noqa: E402
from lepton_mpi.parallel.schedules.schedule import Kind, PipelineShape  # noqa: E402
from lepton_mpi.parallel.stage import CompleteFrom, Stage, build_stages  # noqa: E402
from lepton_mpi.train.network import Network  # noqa: E402
from lepton_mpi.train.run import build_engine  # noqa: E402

CONTEXT, VOCABULARY, ROWS, MICRO_BATCHES = 64, 256, 2, 8
TOLERANCE, PAGES, HUGE_PAGE = 0.02, 64 << 10, 2 << 20
# (data, stages, shards), schedule, virtual stages, recompute; for each number of ranks.
CASES: dict[int, list[tuple[tuple[int, int, int], str, int, bool]]] = {
    1: [((1, 1, 1), "1f1b", 1, False), ((1, 1, 1), "1f1b", 1, True), ((1, 1, 1), "gpipe", 1, False)],
    4: [
        ((4, 1, 1), "1f1b", 1, False),
        ((1, 4, 1), "gpipe", 1, False),
        ((1, 4, 1), "1f1b", 1, False),
        ((1, 4, 1), "1f1b", 1, True),
        ((1, 4, 1), "zero_bubble", 1, False),
        ((1, 4, 1), "interleaved", 2, False),
        ((2, 2, 1), "1f1b", 1, False),
        ((1, 2, 2), "1f1b", 1, False),
    ],
    16: [((16, 1, 1), "1f1b", 1, False), ((4, 2, 2), "1f1b", 1, False)],
}


@dataclass(frozen=True)
class OnPaper(Place):
    """A shard that has nobody to talk to: shapes are right, sums are not."""

    def replicate(self, length: int = 0, unit: int = 1) -> Move:
        return Replicate()

    def sum(self, length: int = 0, unit: int = 1) -> Move:
        return AddParts()

    def gather(self, length: int, unit: int = 1) -> Move:
        return Widen(length, self.share(length, unit))

    def gather_over_data(self, x: Any, num_rows: int = 0) -> Any:
        return np.repeat(x, max(num_rows, 1), axis=0)


@dataclass(frozen=True)
class Widen(Move):
    """A part of the last dim among zeros."""

    length: int
    share: tuple[int, int]

    def forward(self, x: Any) -> Any:
        whole = np.zeros((*x.shape[:-1], self.length), x.dtype)
        whole[..., self.share[0] : self.share[1]] = x
        return whole

    def adjoint(self, dy: Any) -> Any:
        return np.ascontiguousarray(dy[..., self.share[0] : self.share[1]])


def held_nbytes(kept: Any, parameters: np.ndarray[Any, Any]) -> int:
    """Return the bytes of all arrays that can be reached, each once, those of parameters left out."""
    found: dict[int, int] = {}

    def follow(x: Any) -> None:
        if isinstance(x, np.ndarray):
            while isinstance(x.base, np.ndarray):
                x = x.base
            if not np.may_share_memory(x, parameters):
                found[id(x)] = x.nbytes
        elif isinstance(x, tuple | list):
            for item in x:
                follow(item)
        elif isinstance(x, dict):
            follow(list(x.values()))
        elif is_dataclass(x):
            follow([getattr(x, field.name) for field in fields(x)])

    follow(kept)
    return sum(found.values())


class Weighed:
    """A stage that notes how much is held between its passes, over all runs of layers of its rank."""

    now = peak = 0

    def __init__(self, stage: Stage, parameters: np.ndarray[Any, Any]) -> None:
        self._stage = stage
        self._parameters = parameters
        self._saved: list[int] = []
        self._pending: list[int] = []

    def _note(self, change: int) -> None:
        Weighed.now += change
        Weighed.peak = max(Weighed.peak, Weighed.now)

    def forward(self, x: Any, context: Context) -> tuple[Any, list[Any]]:
        y, saved = self._stage.forward(x, context)
        self._saved.append(held_nbytes(saved, self._parameters))
        self._note(self._saved[-1])
        return y, saved

    def backward_input(self, dy: Any, saved: list[Any]) -> tuple[Any, list[Any]]:
        dx, pending = self._stage.backward_input(dy, saved)
        self._pending.append(held_nbytes(pending, self._parameters))
        self._note(self._pending[-1] - self._saved.pop(0))
        return dx, pending

    def backward_weight(self, pending: list[Any], observer: Any, micro_batch: int) -> None:
        self._stage.backward_weight(pending, observer, micro_batch)
        self._note(-self._pending.pop(0))

    def backward(self, dy: Any, saved: list[Any], observer: Any, micro_batch: int) -> None:
        self._stage.backward(dy, saved, observer, micro_batch)
        self._note(-self._saved.pop(0))


def predicted_activations(network: Network, config: Config) -> int:
    """Return the most bytes that a rank holds between passes, from one pass on paper and the order of its schedule. Local."""
    grid, shape = network.grid, network.grid.shape
    plan = plan_stage(network.model, shape.stages, shape.shards, grid.stage_index, grid.shard_index, division=network.division)
    values, grads = np.zeros(plan.layout.num_values, np.float32), np.zeros(plan.layout.num_values, np.float32)
    place = OnPaper(shape.shards, grid.shard_index)
    stages = build_stages(plan, plan.layout.parameters(values, grads), place, grid.is_first_stage, config.train.recompute)
    saved_nbytes, pending_nbytes = [], []
    for c, (stage, virtual) in enumerate(zip(stages, plan.virtual_stages, strict=True)):
        ids = grid.is_first_stage and c == 0
        x = np.zeros((ROWS, *virtual.in_shapes[0]), np.int64 if ids else np.float32)
        y, saved = stage.forward(x, Context(training=True, num_global=ROWS))
        saved_nbytes.append(held_nbytes(saved, values))
        _, pending = stage.backward_input(np.zeros_like(y), saved)
        pending_nbytes.append(held_nbytes(pending, values))
    now = peak = 0
    pipeline = PipelineShape(shape.stages, MICRO_BATCHES, len(stages))
    for kind, _, c in SCHEDULES[config.train.schedule].actions(grid.stage_index, pipeline):
        if kind is Kind.FORWARD:
            now += saved_nbytes[c]
        elif kind is Kind.BACKWARD:
            now -= saved_nbytes[c]
        elif kind is Kind.BACKWARD_INPUT:
            now += pending_nbytes[c] - saved_nbytes[c]
        elif kind is Kind.BACKWARD_WEIGHT:
            now -= pending_nbytes[c]
        peak = max(peak, now)
    return peak


def segment_nbytes(memory: NodeParameters) -> int:
    """Return this rank's share of the physical memory behind the node's segment. Local."""
    address, inside, pss = memory.values.ctypes.data, False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split(maxsplit=1)[0]
        if "-" in head and not head.endswith(":"):
            low, high = (int(part, 16) for part in head.split("-"))
            inside = low <= address < high
        elif inside and head == "Pss:":
            pss += int(line.split()[1]) * 1024
    return pss


def taken_together(network: Network) -> int:
    """Return the physical bytes of the segment over all ranks of the node. Collective over grid.world."""
    network.grid.world.Barrier()
    own = segment_nbytes(network.memory)
    network.grid.world.Barrier()
    return sum(network.grid.world.allgather(own))


def train(network: Network) -> int:
    """Run one step's passes and return the most bytes held between them. Collective over grid.world."""
    grid = network.grid
    random = np.random.default_rng(grid.data_index)
    texts = [random.integers(0, VOCABULARY, (ROWS, CONTEXT)) for _ in range(MICRO_BATCHES)]
    firsts = [ROWS * m for m in range(MICRO_BATCHES)]
    batch = MicroBatches([ROWS] * MICRO_BATCHES, firsts, texts, texts, ROWS * MICRO_BATCHES)
    pipeline = network.pipeline
    Weighed.now = Weighed.peak = 0
    pipeline._stages = tuple(Weighed(stage, network.memory.values) for stage in pipeline._stages)  # type: ignore[assignment]
    pipeline.train(batch, SoftmaxCrossEntropy(), 1.0, CompleteFrom(pipeline.layer_starts, MICRO_BATCHES, lambda offset: None))
    if Weighed.now != 0:
        raise SystemExit(f"{Weighed.now} bytes of activations are left after the step")
    return Weighed.peak


def measure(world: Any, case: tuple[tuple[int, int, int], str, int, bool]) -> dict[str, Any]:
    """Return all numbers of a grid; bytes a rank, where ranks share something the even part of each. Collective over world."""
    (data, stages, shards), schedule, virtual_stages, recompute = case
    config = Config()
    config = replace(
        config,
        grid=replace(config.grid, data=data, stages=stages, shards=shards, virtual_stages=virtual_stages),
        model=replace(config.model, family="gpt", num_layers=8, width=128, num_heads=4, context=CONTEXT),
        train=replace(config.train, schedule=schedule, recompute=recompute, global_batch=ROWS * MICRO_BATCHES * data),
    )
    engine = build_engine(world, config, DataShape((CONTEXT,), VOCABULARY, (CONTEXT,)))
    network, memory = engine.network, engine.network.memory
    ranks = network.grid.size
    parts = {(stage, shard): num for stage, shard, num in world.allgather(_part(network))}
    one_copy, all_copies = 4 * sum(parts.values()), 4 * sum(num for *_, num in world.allgather(_part(network)))
    float(memory.values.sum())  # every rank maps every page of its weights
    weights = taken_together(network)
    memory.zero_grad()
    gradients = taken_together(network) - weights
    for slot in memory.slots.values():
        slot.fill(0)
    slots = taken_together(network) - weights - gradients
    activations, expected = (world.allgather(n) for n in (train(network), predicted_activations(network, config)))
    engine.free()
    allowance = 2 * HUGE_PAGE if ranks == 1 else PAGES
    taken = weights + gradients + slots
    found = {
        "weights": _pair(weights / ranks, one_copy / ranks),
        "gradients": _pair(gradients / ranks, all_copies / ranks),
        "optimizer": _pair(slots / ranks, len(memory.slots) * one_copy / ranks),
        "all_three": _pair(taken / ranks, (one_copy + all_copies + len(memory.slots) * one_copy) / ranks),
        "activations": _pair(max(activations), max(expected)),
    }
    return {
        "grid": f"{data} x {stages} x {shards}",
        "schedule": schedule,
        "virtual_stages": virtual_stages,
        "recompute": recompute,
        "bytes_a_rank": found,
        "activations_of_each_stage": activations[: stages * shards : shards],
        "copies_of_the_weights": round(weights / one_copy, 3),
        "agrees": weights <= (1 + TOLERANCE) * one_copy + allowance * ranks
        and all(
            _agrees(pair, allowance if name in ("weights", "gradients", "optimizer") else PAGES) for name, pair in found.items()
        ),
    }


def _part(network: Network) -> tuple[int, int, int]:
    return network.grid.stage_index, network.grid.shard_index, network.memory.layout.num_values


def _pair(measured: float, predicted: float) -> dict[str, int]:
    return {"measured": round(measured), "predicted": round(predicted)}


def _agrees(pair: dict[str, int], allowance: int) -> bool:
    return abs(pair["measured"] - pair["predicted"]) <= max(TOLERANCE * pair["predicted"], allowance)


def report(world: Any, cases: Iterable[tuple[tuple[int, int, int], str, int, bool]]) -> None:
    """Measure and print, on rank 0."""
    grids = [measure(world, case) for case in cases]
    if world.Get_rank() == 0:
        result = {
            "benchmark": "memory",
            "ranks": world.Get_size(),
            "model": f"gpt, 8 layers, width 128, context {CONTEXT}; adamw",
            "micro_batches": f"{MICRO_BATCHES} of {ROWS} texts a data rank",
            "grids": grids,
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        }
        print(json.dumps(result, indent=2))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", choices=sorted(CASES), default=sorted(CASES), help="jobs (1 4 16)")
    arguments = parser.parse_args()
    if launched_ranks() == 1 and arguments.ranks != [1]:
        results = []
        for ranks in arguments.ranks:
            command = ["mpirun", "-n", str(ranks), sys.executable, __file__, "--ranks", str(ranks)]
            job = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if not job.stdout:
                raise SystemExit(f"the job on {ranks} ranks printed nothing")
            results.append(json.loads(job.stdout))
        print(json.dumps(results, indent=2))
        grids = [grid for result in results for grid in result["grids"]]
        return int(not all(grid["agrees"] for grid in grids))
    world = start_mpi()
    report(world, CASES[world.Get_size()])
    return 0  # the process that started the ranks looks at the result


if __name__ == "__main__":
    sys.exit(main())
