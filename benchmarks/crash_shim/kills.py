"""Kill trials: every job goes on where the one before it was killed, checks what it finds, trains, saves, and is killed in turn."""

from __future__ import annotations

import os
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crash_shim.cluster import Cluster, Ended
from crash_shim.trace import append_damage

# Steps that a trial trains, with a save after each: phases 1 to 3 of the shim; phase 0 is all before them.
STEPS = 3
# Trials that share a run folder, one after the other.
CHAIN = 25
# A job that finds leftovers makes a few calls more than the first in a folder.
MORE_CALLS = 8
OPTIONS = [
    *("--model.hidden_sizes", "16"),
    *("--data.max_shift", "0"),
    *("--train.steps", "5000"),
    *("--optimizer.schedule", "constant"),
    *("--run.progress", "off"),
    *("--checkpoint.every_steps", "1"),
]
# A process that still lives so long after its job ended is a leftover.
ORPHAN_LIMIT_S = 5.0


@dataclass(frozen=True)
class Kind:
    """A way to save.

    Attributes:
        name: for people.
        options: of the training command line.
        damage: whether the newest checkpoint is damaged before each job, which then writes that step again over it.
    """

    name: str
    options: tuple[str, ...]
    damage: bool = False

    @property
    def phases(self) -> tuple[int, ...]:
        """Phases whose boundaries are tried: the start, and a save that differs from the others tried."""
        return (0, 1) if self.damage else (0, 2, 3)


@dataclass
class Chain:
    """A run folder that several trials share.

    Attributes:
        folder: the run folder.
        floor: the step that the next resume must reach at least.
        has_best: whether the model of the best evaluation was there.
        num_jobs: jobs it has seen.
        alive: processes that had not ended with their job.
    """

    folder: Path
    floor: int = 0
    has_best: bool = False
    num_jobs: int = 0
    alive: list[int] = field(default_factory=list)


@dataclass
class Result:
    """What the trials found.

    Attributes:
        trials, killed: how many were made, and in how many the boundary was reached.
        by_kind: trials of each kind.
        resumes: resumes that were compared with the reference.
        failures: one entry each.
    """

    trials: int = 0
    killed: int = 0
    resumes: int = 0
    by_kind: Counter[str] = field(default_factory=Counter)
    failures: list[dict[str, Any]] = field(default_factory=list)


class KillTrials:
    """Makes the trials of one cluster.

    Args:
        cluster: runs the jobs.
        kinds: ways to save that are tried.
        folder: for run folders; those of failures stay.
        seed: of the order of the trials.
        sabotage: whether what was saved last is deleted before each job, which the trials must notice.
    """

    def __init__(self, cluster: Cluster, kinds: list[Kind], folder: Path, seed: int, sabotage: bool = False) -> None:
        self._cluster, self._kinds, self._folder, self._seed = cluster, kinds, folder, seed
        self._sabotage = sabotage
        self._reference = self._train_reference()
        self._chains: dict[str, Chain] = {}
        self._num_chains = 0
        self.result = Result()
        self.boundaries: dict[str, dict[str, list[int]]] = {}
        for kind in kinds:
            self._begin_chain(kind)

    def plan(self) -> list[tuple[Kind, str]]:
        """Return every boundary of every kind, shuffled: the kind and where to die."""
        places = [
            (kind, f"{process}:{phase}:{call}:{when}:{who}")
            for kind in self._kinds
            for process, counts in sorted(self.boundaries[kind.name].items())
            for phase in kind.phases
            for call in range(counts[phase] + (MORE_CALLS if phase < 2 else 0))
            for when in ("middle", "after")  # before a call that does not write is after the one before it
            for who in ("one", "all")
        ]
        random.Random(self._seed).shuffle(places)
        return places

    def run(self, first: int, num_trials: int) -> Iterator[None]:
        """Make trials number `first` and on, of the plan over and over; yield after each."""
        plan = self.plan()
        for index in range(first, first + num_trials):
            kind, at = plan[index % len(plan)]
            self._make_trial(index, kind, at)
            yield
        for kind in self._kinds:
            self._end_chain(kind)

    def _make_trial(self, index: int, kind: Kind, at: str) -> None:
        chain = self._chains.get(kind.name) or self._begin_chain(kind)
        ended = self._job(kind, chain, at)
        self.result.trials += 1
        self.result.killed += ended.killed
        self.result.by_kind[kind.name] += 1
        problem = self._judge(chain, ended)
        if problem:
            self._fail(index, kind, at, chain, ended, problem)
        elif chain.num_jobs >= CHAIN:
            self._end_chain(kind)

    def _begin_chain(self, kind: Kind) -> Chain:
        self._num_chains += 1
        chain = Chain(self._folder / f"{kind.name}-{self._num_chains}")
        ended = self._cluster.run(chain.folder, [*OPTIONS, *kind.options], STEPS)
        if ended.code or ended.announced != STEPS:
            raise RuntimeError(f"a job without any kill failed:\n{ended.output}")
        chain.floor = STEPS
        self.boundaries.setdefault(kind.name, {name: counts[: STEPS + 1] for name, counts in ended.calls.items()})
        self._chains[kind.name] = chain
        return chain

    def _end_chain(self, kind: Kind) -> None:
        """Resume once more without a kill, and look whether anything was left."""
        chain = self._chains.pop(kind.name, None)
        if chain is None:
            return
        ended = self._cluster.run(chain.folder, [*OPTIONS, *kind.options], 1)
        problem = self._judge(chain, ended) or (f"exit code {ended.code}" if ended.code else "")
        limit = time.monotonic() + ORPHAN_LIMIT_S
        while not problem and any(Path("/proc", str(pid)).exists() for pid in chain.alive):
            if time.monotonic() > limit:
                problem = "processes of a killed job live on"
            time.sleep(0.05)
        if problem:
            self._fail(-1, kind, "end of chain", chain, ended, problem)
        else:
            shutil.rmtree(chain.folder)

    def _job(self, kind: Kind, chain: Chain, at: str) -> Ended:
        if kind.damage:
            chain.floor = damage_newest(chain.folder / "checkpoints")
        if self._sabotage:
            shutil.rmtree(max((chain.folder / "checkpoints").glob("step-*")))
        chain.num_jobs += 1
        return self._cluster.run(chain.folder, [*OPTIONS, *kind.options], STEPS, at)

    def _judge(self, chain: Chain, ended: Ended) -> str:
        """Return what is wrong with a job that resumed, "" if nothing is, and raise the floor to what it announced."""
        chain.alive += ended.alive
        if ended.code == -1:
            return "the job hung"
        if not ended.killed and ended.code:
            return f"exit code {ended.code} without a kill"
        for line in ended.report:
            step = line.get("begin", line.get("step"))
            if line["digest"] != self._reference[step]:
                return f"the weights of step {step} are not those of the run without kills"
        if ended.report:
            self.result.resumes += 1
            begin = ended.report[0]
            if begin["begin"] < chain.floor:
                return f"resumed at step {begin['begin']}, but step {chain.floor} was announced"
            best = [name for name in begin["names"] if re.fullmatch(r"best/checkpoints/step-\d+(\.replaced)?/MANIFEST.json", name)]
            chain.has_best = chain.has_best or bool(best)
            if chain.has_best and not best:
                return "the model of the best evaluation is gone"
            left = leftovers(begin["names"])
            if left:
                return f"left behind: {', '.join(left)}"
        elif not ended.killed:
            return "it said nothing"
        chain.floor = max(chain.floor, ended.announced)
        return ""

    def _fail(self, index: int, kind: Kind, at: str, chain: Chain, ended: Ended, problem: str) -> None:
        report = [{name: value for name, value in line.items() if name != "names"} for line in ended.report]
        self.result.failures.append(
            {
                "trial": index,
                "kind": kind.name,
                "at": at,
                "problem": problem,
                "folder": str(chain.folder),
                "job_of_folder": chain.num_jobs,
                "report": report,
                "output": ended.output[-3000:],
            }
        )
        self._chains.pop(kind.name, None)

    def _train_reference(self) -> list[str]:
        """Return the digest of the weights at every step of a run without kills."""
        steps = (STEPS + 1) * (CHAIN + 2)
        options = [*OPTIONS[:-1], "0", "--checkpoint.driver", "direct"]
        ended = self._cluster.run(self._folder / "reference", options, steps)
        if ended.code:
            raise RuntimeError(f"the run without kills failed:\n{ended.output}")
        return [line["digest"] for line in ended.report]


def leftovers(names: list[str]) -> list[str]:
    """Return what nothing will ever remove among the files and folders of a run folder."""
    everything = set(names)
    # The next save takes drafts with a name that is always the same.
    temporary = [name for name in names if name.endswith(".tmp") and not name.endswith(("/.LATEST.tmp", "/.config.toml.tmp"))]
    # What was being replaced is needed as long as its successor is not there.
    return temporary + [name for name in names if name.removesuffix(".replaced") in everything - {name}]


def damage_newest(checkpoints: Path, trace: Path | None = None) -> int:
    """Change the last byte of the newest checkpoint, and return the step of the one before it."""
    folders = sorted(path for path in checkpoints.glob("step-*") if path.name[5:].isdigit())
    if len(folders) < 2:
        raise RuntimeError(f"{checkpoints}: expected two checkpoints or more, found {len(folders)}")
    data = folders[-1] / "data.h5"
    with open(data, "r+b") as file:
        place = file.seek(-1, os.SEEK_END)
        changed = bytes([file.read(1)[0] ^ 0xFF])
        file.seek(place)
        file.write(changed)
    if trace is not None:
        append_damage(trace, data, place, changed)
    return int(folders[-2].name[5:])
