"""Whatever instant a save is killed at, nothing that was announced is lost: trials by the thousand.

    python benchmarks/crash_trials.py --trials 2000                 # SIGKILL at the system calls of saves, then resume
    python benchmarks/crash_trials.py --kind power-loss --trials 5000
    python benchmarks/crash_trials.py --trials 500 --first 500      # goes on where 500 trials with the same seed ended

Prints one JSON object: {"kill": {trials, by_kind, failures, ...}, "power_loss": {...}}; exits with 1 if anything failed, and leaves
the run folders of failures. See docs/crash_safety.md for what is tried and by which model.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from crash_shim.cluster import Cluster
from crash_shim.kills import KillTrials, Kind
from crash_shim.power_loss import PowerLossTrials, record_saves, save_whole

from lepton_mpi.checkpoint.drivers import mpio_obstacle


class Deadline:
    """When no more trials begin: after a time, or when asked by SIGTERM or SIGINT; what was found until then is printed."""

    def __init__(self, limit_s: float) -> None:
        self._end, self._asked = time.monotonic() + limit_s, False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    @property
    def is_over(self) -> bool:
        """Whether the time has come."""
        return self._asked or time.monotonic() > self._end

    def _ask(self, number: int, frame: object) -> None:
        self._asked = True


def main() -> int:
    """Make the trials and print what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("kill", "power-loss", "all"), default="all")
    parser.add_argument("--trials", type=int, default=200, help="of each kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first trial, to go on with an earlier run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--time-limit-s", type=float, default=float("inf"), help="begin no trial after so long")
    parser.add_argument("--saves", nargs="*", default=[], help="ways to save: direct, mpio-replace, ...; default: all there are")
    parser.add_argument(
        "--sabotage",
        action="store_true",
        help="delete the newest checkpoint before each resume, and leave the fsyncs of data files out of the log: trials must fail",
    )
    parser.add_argument("--folder", type=Path, help="for run folders, on the file system to try; default: a temporary one")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="crash-trials-", dir=arguments.folder)).resolve()
    found: dict[str, Any] = {"machine": platform.platform()} | {name: vars(arguments)[name] for name in ("seed", "first", "ranks")}
    begin = time.monotonic()
    deadline = Deadline(arguments.time_limit_s)
    with Cluster(folder, arguments.ranks) as cluster:
        if arguments.kind != "power-loss":
            found["kill"] = kill_trials(cluster, folder, arguments, deadline)
        if arguments.kind != "kill":
            # They do all that the others do, and replace a checkpoint.
            recorded = {kind.name: record_saves(cluster, kind, folder) for kind in save_kinds(arguments.saves) if kind.damage}
            whole = save_whole(cluster, folder)
    if arguments.kind != "kill":
        power_loss = PowerLossTrials(recorded, whole, folder, arguments.seed, arguments.sabotage)
        for _ in power_loss.run(arguments.first, arguments.trials):
            if deadline.is_over:
                break
        found["power_loss"] = power_loss.summary()
    found["duration_s"] = round(time.monotonic() - begin, 1)
    failures = [failure for part in found.values() if isinstance(part, dict) for failure in part["failures"]]
    if not failures:
        shutil.rmtree(folder)
    print(json.dumps(found, indent=1))
    return 1 if failures else 0


def save_kinds(wanted: list[str]) -> list[Kind]:
    """Return the ways to save that this installation has, or those wanted of them."""
    direct = ("--checkpoint.driver", "direct", "--checkpoint.asynchronous", "false")
    ways = {"direct": direct, "asynchronous": (*direct[:-1], "true")}
    if not mpio_obstacle():
        ways["mpio"] = ("--checkpoint.driver", "mpio", "--checkpoint.asynchronous", "false")
    ways["best"] = (*ways["asynchronous"], "--checkpoint.keep_best", "true", "--train.evaluate_every_steps", "1")
    kinds = [Kind(name, options) for name, options in ways.items()]
    kinds += [Kind(f"{name}-replace", options, damage=True) for name, options in ways.items() if name != "best"]
    return [kind for kind in kinds if not wanted or kind.name in wanted]


def kill_trials(cluster: Cluster, folder: Path, arguments: argparse.Namespace, deadline: Deadline) -> dict[str, Any]:
    """Make the kill trials and return what they found."""
    trials = KillTrials(cluster, save_kinds(arguments.saves), folder, arguments.seed, arguments.sabotage)
    for _ in trials.run(arguments.first, arguments.trials):
        if trials.result.trials % 50 == 0:
            print(f"{trials.result.trials} kills, {len(trials.result.failures)} failures", file=sys.stderr, flush=True)
        if deadline.is_over:
            break
    result = trials.result
    return {
        "trials": result.trials,
        "killed": result.killed,
        "resumes_compared": result.resumes,
        "by_kind": dict(result.by_kind),
        "boundaries": trials.boundaries,
        "distinct_kills": len(trials.plan()),
        "failures": result.failures,
    }


if __name__ == "__main__":
    sys.exit(main())
