"""Whether training with every codec reaches the loss of fp32 in the same number of steps.

    python benchmarks/convergence.py                                  # digits and a small GPT, three seeds; prints JSON
    python benchmarks/convergence.py --tasks digits-sgd --seeds 0     # a part of it
    python benchmarks/convergence.py --results benchmarks/results --plot docs/compression.svg
    python benchmarks/convergence.py --keep FOLDER                    # runs that FOLDER holds already are not repeated

Two ranks that count as two nodes. The loss of a run is the mean training loss of its last tenth, over the same batches for all
codecs; a codec reaches fp32 if the mean of that over the seeds is at most 2% above. The exit code is 1 if one does not. The
tasks with -fast in their names are not in the default: they show at which learning rate codecs fall behind. Nor are those with
-corrected, whose ranks make the momentum before compression.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

TOLERANCE = 0.02
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
COMMON = (
    "--grid.ranks_per_node", "1", "--run.progress", "off", "--run.threads", "1", "--checkpoint.every_steps", "0",
    "--train.evaluate_every_epochs", "0",
)  # fmt: skip
DIGITS = ("--model.hidden_sizes", "128,64")
GPT = (
    "--model.family", "gpt", "--model.num_layers", "2", "--model.width", "64", "--model.num_heads", "4", "--model.context", "64",
    "--data.format", "pystdlib", "--data.test_fraction", "0.0005", "--data.test_samples", "16", "--train.global_batch", "8",
)  # fmt: skip
SGD = ("--optimizer.name", "sgd", "--optimizer.momentum", "0.9", "--optimizer.weight_decay", "0")
CORRECTED = (*SGD, "--optimizer.momentum_correction", "true")
ADAMW = ("--optimizer.name", "adamw")
CODECS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("bf16", "fp16", "int8", "int4", "sign1"), ()),
    "topk": ("--reduce.topk_share", "0.05"),
    "powersgd": ("--reduce.powersgd_rank", "4"),
}
FEEDBACK = frozenset({"int4", "sign1", "topk", "powersgd"})
ONEBIT = ("--optimizer.name", "onebit_adam")


@dataclass(frozen=True)
class Task:
    """What is trained, how long, and with which optimizer some codecs go instead of that of fp32."""

    title: str
    steps: int
    options: tuple[str, ...]
    optimizer: str
    onebit_adam: frozenset[str] = frozenset()


TASKS = {
    "digits-sgd": Task("digits, SGD with momentum", 1200, (*DIGITS, *SGD, "--optimizer.lr", "0.03"), "sgd"),
    "gpt-adamw": Task(
        "byte-level GPT, AdamW",
        600,
        (*GPT, *ADAMW, "--optimizer.lr", "0.0015", "--optimizer.warmup_steps", "40"),
        "adamw",
        frozenset({"sign1", "topk"}),
    ),
    "digits-sgd-fast": Task("digits, SGD with momentum, lr 0.1", 1200, (*DIGITS, *SGD, "--optimizer.lr", "0.1"), "sgd"),
    "digits-sgd-corrected": Task(
        "digits, SGD with momentum before compression", 1200, (*DIGITS, *CORRECTED, "--optimizer.lr", "0.03"), "sgd"
    ),
    "digits-sgd-fast-corrected": Task(
        "digits, SGD with momentum before compression, lr 0.1", 1200, (*DIGITS, *CORRECTED, "--optimizer.lr", "0.1"), "sgd"
    ),
}
DEFAULT_TASKS = ("digits-sgd", "gpt-adamw")


def optimizer_of(task: Task, codec: str) -> str:
    """Return the optimizer that a codec goes with."""
    return "onebit_adam" if codec in task.onebit_adam else task.optimizer


def plan(task_names: Sequence[str], codecs: Sequence[str], seeds: Sequence[int], folder: Path) -> list[dict[str, Any]]:
    """Return the runs: what is trained, with which codec, and the options of the training command."""
    runs = []
    for name in task_names:
        task = TASKS[name]
        decay_steps = task.steps - (int(task.options[-1]) if "--optimizer.warmup_steps" in task.options else 0)
        for codec in ("exact", *(codecs or CODECS)):
            more = (*CODECS.get(codec, ()), *(ONEBIT if codec in task.onebit_adam else ()))
            for seed in seeds:
                run_folder = folder / f"{name}-{codec}-{seed}"
                options = (
                    *COMMON, *task.options, *more, "--train.steps", task.steps, "--optimizer.decay_steps", decay_steps,
                    "--train.seed", seed, "--reduce.mode", codec, "--run.dir", run_folder,
                )  # fmt: skip
                runs.append(
                    {"task": name, "codec": codec, "seed": seed, "folder": str(run_folder), "options": [*map(str, options)]}
                )
    return runs


def work(plan_path: Path) -> int:
    """Do all runs of a plan on the ranks of this job, one after the other."""
    from lepton_mpi.config.command_line import parse_arguments
    from lepton_mpi.runtime.failure import FailureReport
    from lepton_mpi.runtime.launch import run_command
    from lepton_mpi.runtime.mpi import MPI
    from lepton_mpi.runtime.threads import limit_threads
    from lepton_mpi.train.command import run_training

    num_threads = limit_threads(1)

    def all_runs(comm: MPI.Intracomm, report: FailureReport) -> int:
        for run in json.loads(plan_path.read_text()):
            code = run_training(comm.Dup(), parse_arguments(run["options"]).config, num_threads, report)
            if code:
                return code
        return 0

    return run_command(all_runs)


def found_losses(run: dict[str, Any]) -> list[float]:
    """Return the training loss of every step of a run so far."""
    path = Path(run["folder"], "metrics.jsonl")
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [record["loss"] for record in records if "loss" in record and "step" in record and "lr" in record]


def read_losses(run: dict[str, Any]) -> list[float]:
    """Return the training loss of every step of a run that has ended."""
    losses = found_losses(run)
    if len(losses) != TASKS[run["task"]].steps:
        raise SystemExit(f"{run['folder']}: expected {TASKS[run['task']].steps} steps, found {len(losses)}")
    return losses


def tail_mean(losses: Sequence[float]) -> float:
    """Return the mean of the last tenth."""
    last = losses[-max(len(losses) // 10, 1) :]
    return sum(last) / len(last)


def compare(runs: Sequence[dict[str, Any]], curves: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    """Return one record a task and codec, and add the curves, means over the seeds, by task and codec."""
    losses: dict[tuple[str, str], list[list[float]]] = {}
    for run in runs:
        losses.setdefault((run["task"], run["codec"]), []).append(read_losses(run))
    records = []
    for (task, codec), of_seeds in losses.items():
        curves.setdefault(TASKS[task].title, {})[codec] = [sum(step) / len(step) for step in zip(*of_seeds, strict=True)]
        finals = [tail_mean(one) for one in of_seeds]
        exact = [tail_mean(one) for one in losses[task, "exact"]]
        ratio = sum(finals) / sum(exact)
        records.append(
            {
                "benchmark": "convergence", "task": task, "codec": codec, "steps": TASKS[task].steps,
                "optimizer": optimizer_of(TASKS[task], codec),
                "feedback": codec in FEEDBACK, "losses": finals, "loss": sum(finals) / len(finals),
                "ratios": [a / b for a, b in zip(finals, exact, strict=True)], "ratio": ratio,
                "reaches_fp32": ratio <= 1 + TOLERANCE,
                "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            }
        )  # fmt: skip
    return records


def smooth(values: Sequence[float], window: int = 12) -> list[float]:
    """Return the mean of each value and those before it."""
    return [sum(values[max(0, i + 1 - window) : i + 1]) / min(window, i + 1) for i in range(len(values))]


def train(runs: Sequence[dict[str, Any]], plan_path: Path) -> subprocess.CompletedProcess[str]:
    """Start the ranks and do the runs."""
    plan_path.write_text(json.dumps(runs))
    launcher = Path(sys.executable).parent / "mpirun"
    program = str(launcher) if launcher.exists() else "mpirun"
    command = [program, "-n", "2", sys.executable, __file__, "--worker", str(plan_path)]
    return subprocess.run(
        command, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def main() -> int:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(DEFAULT_TASKS))
    parser.add_argument("--codecs", nargs="+", choices=CODECS, default=[], help="beside exact; all if left out")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--results", type=Path, help="folder for a dated JSON file")
    parser.add_argument("--plot", type=Path, help="SVG file of the curves")
    parser.add_argument("--keep", type=Path, help="folder for the runs, which are not repeated where it holds them")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return work(arguments.worker)
    with nullcontext(arguments.keep) if arguments.keep else tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = plan(arguments.tasks, arguments.codecs, arguments.seeds, folder)
        folder.mkdir(parents=True, exist_ok=True)
        missing = [run for run in runs if len(found_losses(run)) != TASKS[run["task"]].steps]
        job = train(missing, folder / "plan.json")
        if job.returncode:
            sys.stderr.write(job.stdout[-4000:])
            return job.returncode
        curves: dict[str, dict[str, list[float]]] = {}
        records = compare(runs, curves)
    text = json.dumps(records, indent=2) + "\n"
    sys.stdout.write(text)
    if arguments.results:
        (arguments.results / f"{records[0]['date']}-convergence.json").write_text(text)
    if arguments.plot:
        from svg_lines import draw_panels

        panels = {title: {codec: smooth(values) for codec, values in by_codec.items()} for title, by_codec in curves.items()}
        arguments.plot.write_text(draw_panels(panels, "step", "training loss, mean of 12 steps and the seeds"))
    return 0 if all(record["reaches_fp32"] for record in records) else 1


if __name__ == "__main__":
    sys.exit(main())
