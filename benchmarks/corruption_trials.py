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
import hashlib
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lepton_mpi.runtime.mpi import MPI, start_mpi
from lepton_mpi.runtime.threads import limit_threads

limit_threads(1)  # before NumPy is loaded

from lepton_mpi.checkpoint.integrity import find_damage  # noqa: E402
from lepton_mpi.checkpoint.manifest import digest_ranges  # noqa: E402
from lepton_mpi.checkpoint.reader import CheckpointReader  # noqa: E402
from lepton_mpi.checkpoint.resume import find_resumable  # noqa: E402
from lepton_mpi.errors import CheckpointError  # noqa: E402

DATA, MANIFEST, OLD, NEW = "data.h5", "MANIFEST.json", "step-000000002", "step-000000004"
TRIAL_TIMEOUT_S = 30
WHOLE_EVERY = 50  # one trial in so many leaves the checkpoint as it is


@dataclass(frozen=True)
class Subject:
    """What a trial may change.

    Attributes:
        folder: the checkpoint of step 4, a copy.
        older: the checkpoint of step 2 of the same run, which must stay whole.
        other: the checkpoint of step 4 of another run.
        data: what the data file holds.
        tensors: ranges of bytes of tensors' elements in it.
        frame: the ranges around them.
        gaps: ranges of the frame that no object of HDF5 uses.
    """

    folder: Path
    older: Path
    other: Path
    data: bytes
    tensors: list[tuple[int, int]]
    frame: list[tuple[int, int]]
    gaps: list[tuple[int, int]]


Damage = Callable[[random.Random, Subject], None]


def position_in(ranges: list[tuple[int, int]], rng: random.Random) -> int:
    """Return a byte of some ranges, each as likely as the others."""
    index = rng.randrange(sum(stop - start for start, stop in ranges))
    for start, stop in ranges:
        if index < stop - start:
            return start + index
        index -= stop - start
    raise IndexError("no such byte")


def overwrite(file: Path, position: int, new: bytes) -> None:
    with file.open("r+b") as stream:
        stream.seek(position)
        stream.write(new)


def flip(name: str, ranges: str = "") -> Damage:
    """Return a damage that inverts one bit of a file, anywhere or in some ranges of it."""

    def change(rng: random.Random, subject: Subject) -> None:
        file = subject.folder / name
        position = position_in(getattr(subject, ranges), rng) if ranges else rng.randrange(file.stat().st_size)
        overwrite(file, position, bytes([file.read_bytes()[position] ^ (1 << rng.randrange(8))]))

    return change


def burst(rng: random.Random, subject: Subject) -> None:
    """Put noise in the place of some bytes."""
    position = rng.randrange(len(subject.data))
    overwrite(subject.folder / DATA, position, rng.randbytes(rng.randint(2, 600)))
    os.truncate(subject.folder / DATA, len(subject.data))


def draw_block(rng: random.Random, subject: Subject) -> tuple[int, int]:
    """Return start and length of a block as disks and page caches have them."""
    nbytes = rng.choice((64, 512, 4096))
    return rng.randrange(len(subject.data) // nbytes) * nbytes, nbytes


def zero_block(rng: random.Random, subject: Subject) -> None:
    """Lose a write."""
    start, nbytes = draw_block(rng, subject)
    overwrite(subject.folder / DATA, start, bytes(nbytes))


def stale_block(rng: random.Random, subject: Subject) -> None:
    """Leave a block as an older checkpoint had it."""
    start, nbytes = draw_block(rng, subject)
    overwrite(subject.folder / DATA, start, (subject.older / DATA).read_bytes()[start : start + nbytes])


def swap_blocks(rng: random.Random, subject: Subject) -> None:
    """Let two writes go to each other's place."""
    (a, nbytes), other = draw_block(rng, subject), rng.randrange(len(subject.data))
    b = other // nbytes * nbytes
    length = min(nbytes, len(subject.data) - b)
    overwrite(subject.folder / DATA, a, subject.data[b : b + length])
    overwrite(subject.folder / DATA, b, subject.data[a : a + length])


def truncate(name: str) -> Damage:
    def change(rng: random.Random, subject: Subject) -> None:
        nbytes = (subject.folder / name).stat().st_size
        os.truncate(subject.folder / name, rng.choice((0, nbytes - 1, rng.randrange(nbytes), rng.randrange(nbytes) // 512 * 512)))

    return change


def extend(name: str) -> Damage:
    def change(rng: random.Random, subject: Subject) -> None:
        with (subject.folder / name).open("ab") as stream:
            stream.write(rng.choice((b"\0", b"\n", b" ", bytes(4096), rng.randbytes(rng.randint(1, 5000)))))

    return change


def remove(*names: str) -> Damage:
    def change(rng: random.Random, subject: Subject) -> None:
        for name in names:
            (subject.folder / name).unlink()

    return change


def take_from_older(*names: str) -> Damage:
    """Return a damage that swaps files with the checkpoint of step 2 of the same run, of which only the newer is looked at."""

    def change(rng: random.Random, subject: Subject) -> None:
        for name in names:
            shutil.copyfile(subject.older / name, subject.folder / name)

    return change


def take_from_other(name: str) -> Damage:
    def change(rng: random.Random, subject: Subject) -> None:
        shutil.copyfile(subject.other / name, subject.folder / name)

    return change


def replace_by(name: str, how: str) -> Damage:
    """Return a damage that puts a link, a pipe or a folder in the place of a file."""

    def change(rng: random.Random, subject: Subject) -> None:
        file, aside = subject.folder / name, subject.folder / "aside"
        file.rename(aside)
        if how == "link_to_itself":
            file.symlink_to(aside)
        elif how == "link_to_older":
            file.symlink_to(subject.older / name)
        elif how == "hard_link_to_older":
            os.link(subject.older / name, file)
        elif how == "dangling_link":
            file.symlink_to(subject.folder / "nowhere")
        elif how == "link_loop":
            file.symlink_to(file)
        elif how == "pipe":
            os.mkfifo(file)
        else:
            file.mkdir()

    return change


def link_folder(rng: random.Random, subject: Subject) -> None:
    """Make the newer checkpoint's folder a link to the older one's."""
    shutil.rmtree(subject.folder)
    subject.folder.symlink_to(subject.older)


def seal(subject: Subject, changes: dict[str, object]) -> None:
    """Change the manifest and give it a digest that fits, as only somebody who means it can."""
    body = json.loads((subject.folder / MANIFEST).read_text()) | changes
    del body["sha256"]
    sha256 = hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    (subject.folder / MANIFEST).write_text(json.dumps({**body, "sha256": sha256}, indent=1) + "\n")


def forge_structure(rng: random.Random, subject: Subject) -> None:
    """Flip a bit of the structure and seal it, so that HDF5 gets to see it."""
    flip(DATA, "frame")(rng, subject)
    seal(subject, {"frame_sha256": digest_ranges(subject.folder / DATA, subject.frame)})


def forge_manifest(rng: random.Random, subject: Subject) -> None:
    """Put anything in the place of a value of the manifest, and seal it."""
    name = rng.choice(list(json.loads((subject.folder / MANIFEST).read_text()).keys() - {"sha256"}))
    odd: tuple[object, ...] = (None, -1, 2**64, 1e999, "", "x", [], [[0, 2**62]], [[5, 1]], [[-9, 3]], [["a", {}]], {"a": {}}, [0])
    seal(subject, {name: rng.choice(odd)})


STAND_INS = ("link_to_itself", "link_to_older", "hard_link_to_older", "dangling_link", "link_loop", "pipe", "folder")
# Bit flips make up most of the trials, as there are most different ones.
KINDS: dict[str, tuple[int, Damage]] = {
    "flip: elements": (20, flip(DATA, "tensors")),
    "flip: structure, attributes, digests": (20, flip(DATA, "frame")),
    "flip: gaps": (10, flip(DATA, "gaps")),
    "flip: manifest": (15, flip(MANIFEST)),
    "noise": (8, burst),
    "block: zeroed": (8, zero_block),
    "block: of an older checkpoint": (8, stale_block),
    "block: swapped": (10, swap_blocks),
    "truncated: data": (6, truncate(DATA)),
    "truncated: manifest": (6, truncate(MANIFEST)),
    "extended: data": (4, extend(DATA)),
    "extended: manifest": (4, extend(MANIFEST)),
    "removed: data": (1, remove(DATA)),
    "removed: manifest": (1, remove(MANIFEST)),
    "removed: both": (1, remove(DATA, MANIFEST)),
    "swapped: data of another step": (1, take_from_older(DATA)),
    "swapped: manifest of another step": (1, take_from_older(MANIFEST)),
    "swapped: both of another step": (1, take_from_older(DATA, MANIFEST)),
    "swapped: data of another run": (1, take_from_other(DATA)),
    "swapped: manifest of another run": (1, take_from_other(MANIFEST)),
    "replaced: folder by a link": (1, link_folder),
    "forged: structure": (8, forge_structure),
    "forged: manifest": (8, forge_manifest),
    **{f"replaced: {name} by {how}": (1, replace_by(name, how)) for name in (DATA, MANIFEST) for how in STAND_INS},
}


def fingerprint(folder: Path) -> tuple[object, ...]:
    """Return what of a checkpoint a damage could change."""
    files = [folder / name for name in (DATA, MANIFEST)]
    kinds = [folder.is_symlink(), *(file.lstat().st_mode & 0o170000 if os.path.lexists(file) else 0 for file in files)]
    inodes = [file.lstat().st_nlink if file.is_file() else 0 for file in files]
    return (*kinds, *inodes, *(file.read_bytes() if file.is_file() and not file.is_symlink() else b"" for file in files))


def find_gaps(data: bytes, frame: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the zeros before each aligned tensor, which HDF5 leaves unused."""
    gaps = []
    for start, stop in frame:
        used = len(data[start:stop].rstrip(b"\0"))
        if stop % 4096 == 0 and stop - start - used > 16:
            gaps.append((start + used + 8, stop))  # 8: what is in use may end with zeros
    return gaps


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
