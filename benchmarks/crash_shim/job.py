"""What a rank of a trial does: train as `python -m lepton_mpi.train` does, and say in a file outside the run folder what it holds.

Rank 0 writes lines of JSON to the file named by CRASH_REPORT: one when training begins ({"begin": step, "digest": weights, "names":
what the run folder holds}) and one after every step. CRASH_STEPS is how many steps it trains before it asks to stop. Phases of the
shim: 0 until the first step begins, 1 from then until the second begins, and so on.
"""

from __future__ import annotations

import ctypes
import json
import os
from pathlib import Path
from typing import Any

import lepton_mpi.train.loop as loop
from lepton_mpi.train.__main__ import main


def run_rank(shim: ctypes.CDLL, argv: list[str]) -> int:
    """Train under the shim and return the exit code."""
    true_step, first, num_steps = loop.train_step, True, int(os.environ["CRASH_STEPS"])
    last = 0
    shim.crash_begin()
    shim.crash_register()

    def train_step(training: Any, state: Any, stop_requested: bool) -> Any:
        nonlocal first, last
        weights = training.network.weights
        if first:
            first, last = False, state.step + num_steps
            _report(training, {"begin": state.step, "digest": weights.sha256(), "names": _names(training)})
        shim.crash_phase(num_steps - last + state.step + 1)
        result = true_step(training, state, stop_requested or state.step + 1 >= last)
        _report(training, {"step": result[0].step, "digest": weights.sha256()})
        return result

    loop.train_step = train_step
    return main(argv)


def _names(training: Any) -> list[str]:
    """Return what lies in the run folder, to be searched for leftovers; on rank 0."""
    folder = Path(os.environ["CRASH_RUN_FOLDER"])
    return [str(path.relative_to(folder)) for path in folder.rglob("*")] if training.network.grid.rank == 0 else []


def _report(training: Any, line: dict[str, Any]) -> None:
    if training.network.grid.rank == 0:
        with open(os.environ["CRASH_REPORT"], "a", encoding="utf-8") as report:
            report.write(json.dumps(line) + "\n")
