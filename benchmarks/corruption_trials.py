"""Damage a checkpoint in thousands of ways: nothing may load it, and nothing may crash.

    python benchmarks/corruption_trials.py                 # 5,000 trials, prints one JSON object
    python benchmarks/corruption_trials.py --trials 60     # a short form

Two training runs on 2 ranks each write checkpoints of steps 2 and 4. Each trial copies the first run's, changes the one of step
4 in one way drawn by its number and the seed, and asks everything that reads checkpoints: `find_damage` (as `verify` does) must
name the damage, `find_resumable` (as `train` does) must go back to step 2, and `CheckpointReader` must open it or raise
CheckpointError. There is no harmless damage: every byte of both files is under a digest, the gaps between tensors included. A
change that leaves every byte as it was is drawn anew. Forged ones, whose manifest was made to fit, may be accepted, where they are
in a gap or an unused value; they must not crash the reader.

The trials run in a child process, all in one, so that a crash in HDF5 counts against the trial at hand. Exit code 1 if any
damage was not detected, if anything but CheckpointError came up, or if a whole checkpoint was refused.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from lepton_mpi.runtime.mpi import MPI, start_mpi
from lepton_mpi.runtime.threads import limit_threads

limit_threads(1)  # before NumPy is loaded

from corruption.damage import DATA, KINDS, MANIFEST, Damage, Subject, find_gaps, fingerprint  # noqa: E402

from lepton_mpi.checkpoint.integrity import find_damage  # noqa: E402
from lepton_mpi.checkpoint.reader import CheckpointReader  # noqa: E402
from lepton_mpi.checkpoint.resume import find_resumable  # noqa: E402
from lepton_mpi.errors import CheckpointError  # noqa: E402

OLD, NEW = "step-000000002", "step-000000004"
TRIAL_TIMEOUT_S = 30
WHOLE_EVERY = 50  # one trial in so many leaves the checkpoint as it is


def schedule(trials: int, seed: int) -> list[str]:
    """Return the kind of damage of each trial: every kind at least once if there are enough, then by weight."""
    rng = random.Random(seed)
    first = sorted(KINDS, key=lambda kind: (-KINDS[kind][0], kind))[:trials]
    rest = rng.choices(list(KINDS), [weight for weight, _ in KINDS.values()], k=max(0, trials - len(KINDS)))
    return first + rest


def run_trial(comm: MPI.Intracomm, checkpoints: Path, kind: str, change: Damage | None, rng: random.Random) -> str:
    """Damage a copy of a checkpoint, or leave it whole, and return "detected", "whole" or what went wrong."""
    with tempfile.TemporaryDirectory(prefix="trial-", dir=checkpoints) as place:
        root = Path(place)
        for name in (OLD, NEW):
            shutil.copytree(checkpoints / "one" / name, root / name)
        with CheckpointReader(root / NEW) as reader:
            frame = list(reader.manifest.frame)
            extents = [(reader.offset(path), info.nbytes) for path, info in reader.tensors.items() if info.nbytes]
        data = (root / NEW / DATA).read_bytes()
        tensors = [(start, start + nbytes) for start, nbytes in extents]
        other = checkpoints / "two" / NEW
        subject = Subject(root / NEW, root / OLD, other, data, tensors, frame, find_gaps(data, frame))
        if change is not None:
            before = fingerprint(root / NEW)
            while fingerprint(root / NEW) == before:
                change(rng, subject)
        return judge(comm, root, kind, damaged=change is not None)


def judge(comm: MPI.Intracomm, root: Path, kind: str, *, damaged: bool) -> str:
    """Ask everything that reads checkpoints, and return a verdict."""
    verdicts = []
    try:
        verdicts.append(not find_damage(comm, root / NEW))
    except CheckpointError:
        verdicts.append(False)
    try:
        verdicts.append(find_resumable(comm, root, LOG) == root / NEW)
        with CheckpointReader(root / NEW) as reader:
            for path, info in reader.tensors.items():
                reader.read(path, (0,) * len(info.shape), info.shape)
    except CheckpointError as error:
        if len(verdicts) < 2:
            return f"the older checkpoint was refused too: {error}"
    if kind.startswith("forged") and verdicts[0] == verdicts[1]:
        return "accepted" if verdicts[0] else "detected"
    if verdicts == [not damaged] * 2:
        return "detected" if damaged else "whole"
    return f"taken for whole by verify, resume: {verdicts}" if damaged else f"a whole one was refused: {verdicts}"


LOG = logging.getLogger("corruption_trials")


def run_trials(checkpoints: Path, trials: int, seed: int, first: int) -> None:
    """Run the trials from one on and print a line before and after each."""
    LOG.addHandler(logging.NullHandler())
    LOG.propagate = False
    comm = start_mpi().Dup()
    for number, kind in enumerate(schedule(trials, seed)):
        if number < first:
            continue
        signal.alarm(TRIAL_TIMEOUT_S)
        print(json.dumps([number, kind, "started"]), flush=True)
        try:
            if number % WHOLE_EVERY == 0:
                print(json.dumps([number, "none", run_trial(comm, checkpoints, "none", None, random.Random(0))]), flush=True)
            verdict = run_trial(comm, checkpoints, kind, KINDS[kind][1], random.Random(f"{seed} {number}"))
        except Exception as error:
            verdict = f"{type(error).__name__}: {error}"
        print(json.dumps([number, kind, verdict]), flush=True)
    signal.alarm(0)


# Small, and with one tensor that is large enough to be aligned.
OPTIONS = ("--model.hidden_sizes", "80,8", "--data.max_shift", "0", "--train.steps", "4", "--checkpoint.every_steps", "2")


def train(folder: Path) -> list[Path]:
    """Train twice on 2 ranks and return the run folders."""
    runs = [folder / "run-1", folder / "run-2"]
    for seed, run in enumerate(runs):
        command = ["mpirun", "-n", "2", sys.executable, "-m", "lepton_mpi.train", *OPTIONS, "--train.seed", str(seed)]
        command += ["--run.dir", str(run), "--run.progress", "off"]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300)
        if done.returncode:
            raise SystemExit(f"training failed:\n{done.stdout}{done.stderr}")
    return runs


def collect(checkpoints: Path, trials: int, seed: int) -> dict[str, Counter[str]]:
    """Run all trials in child processes, a new one after each crash, and count the verdicts by kind of damage."""
    found: dict[str, Counter[str]] = {}
    first = 0
    while first < trials:
        command = [sys.executable, __file__, "--child", str(checkpoints), "--trials", str(trials), "--seed", str(seed)]
        child = subprocess.Popen([*command, "--first", str(first)], stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
        assert child.stdout is not None
        number, kind, verdict = first, "none", "started"
        for line in child.stdout:
            number, kind, verdict = json.loads(line)
            if verdict != "started":
                found.setdefault(kind, Counter())[verdict] += 1
                if number % 500 == 499:
                    print(f"{number + 1} of {trials} trials", file=sys.stderr)
                first = number + 1 if kind != "none" else first
        if child.wait():
            if verdict == "started":
                found.setdefault(kind, Counter())[f"crashed with code {child.returncode}"] += 1
                first = number + 1
            elif first < trials:
                raise SystemExit(f"the child process ended with code {child.returncode} between trials")
    return found


def main() -> int:
    """Read the command line, run the trials, and print the result."""
    parser = argparse.ArgumentParser(description="Damage a checkpoint in many ways and see that all are detected.")
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=Path, nargs=2, metavar="RUN", help="run folders with steps 2 and 4; else two are trained")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        run_trials(arguments.child, arguments.trials, arguments.seed, arguments.first)
        return 0
    with tempfile.TemporaryDirectory() as place:
        checkpoints = Path(place, "checkpoints")
        for name, run in zip(("one", "two"), arguments.runs or train(Path(place)), strict=True):
            shutil.copytree(run / "checkpoints", checkpoints / name)
        start_s = time.monotonic()
        found = collect(checkpoints, arguments.trials, arguments.seed)
        nbytes = {name: (checkpoints / "one" / NEW / name).stat().st_size for name in (DATA, MANIFEST)}
    whole = found.pop("none", Counter())
    detected = sum(counts["detected"] for counts in found.values())
    accepted = sum(counts["accepted"] for counts in found.values())
    result = {
        "trials": arguments.trials,
        "detected": detected,
        "forged_accepted": accepted,
        "undetected": arguments.trials - detected - accepted,
        "whole_accepted": whole["whole"],
        "whole_refused": sum(whole.values()) - whole["whole"],
        "seconds": round(time.monotonic() - start_s, 1),
        "nbytes": nbytes,
        "seed": arguments.seed,
        "kinds": {kind: dict(found[kind]) for kind in KINDS if kind in found},
        "problems": {kind: text for kind, counts in [*found.items(), ("none", whole)] for text in counts if text not in FINE},
    }
    print(json.dumps(result, indent=1))
    return 0 if not result["undetected"] and not result["whole_refused"] else 1


FINE = ("detected", "accepted", "whole")


if __name__ == "__main__":
    sys.exit(main())
