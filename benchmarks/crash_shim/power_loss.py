"""Power loss trials: states that a disk may be left in while a run saves, each given to the loader. See `disk` for the model."""

from __future__ import annotations

import hashlib
import logging
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crash_shim.cluster import ANNOUNCED, Cluster, fast_folder
from crash_shim.disk import SURVIVALS, Disk, Recorded
from crash_shim.kills import OPTIONS, Kind, damage_newest
from crash_shim.trace import DAMAGER, Call, read_trace

# Name of the run folder in the folder that is modelled.
RUN = "run"


def record_saves(cluster: Cluster, kind: Kind, folder: Path) -> Recorded:
    """Run jobs that make a run folder, save, are killed in a save, resume, and save again, with every call in a log."""
    outer, trace = folder / f"recorded-{kind.name}", folder / f"recorded-{kind.name}.trace"
    outer.mkdir()
    run_folder = outer / RUN
    options = [*OPTIONS, *kind.options]
    cluster.run(run_folder, options, 3, trace=trace)
    cluster.run(run_folder, options, 3, "0:2:40:before:one", trace)
    if kind.damage:
        damage_newest(run_folder / "checkpoints", trace)
    ended = cluster.run(run_folder, options, 3, trace=trace)
    if ended.code:
        raise RuntimeError(f"the recorded job failed:\n{ended.output}")
    return Recorded(outer, read_trace(trace))


def save_whole(cluster: Cluster, folder: Path) -> Path:
    """Run a job without kills that keeps the checkpoints of all steps that recorded jobs reach, and return their folder."""
    run_folder = folder / "whole"
    options = [*OPTIONS, "--checkpoint.driver", "direct", "--checkpoint.asynchronous", "false", "--checkpoint.keep_last", "0"]
    ended = cluster.run(run_folder, options, 9)
    if ended.code:
        raise RuntimeError(f"the job without kills failed:\n{ended.output}")
    return run_folder / "checkpoints"


class PowerLossTrials:
    """Gives states after a power loss to the loader. Starts MPI, so no job can be started afterwards.

    Args:
        recorded: saves, by kind.
        whole: the true checkpoints of all steps.
        folder: for the states; those of failures stay.
        seed: of what is drawn.
        sabotage: whether fsyncs of data files count for nothing, which the trials must notice.
    """

    def __init__(self, recorded: dict[str, Recorded], whole: Path, folder: Path, seed: int, sabotage: bool = False) -> None:
        from lepton_mpi.runtime.mpi import start_mpi

        start_mpi()
        self._folder, self._seed = folder, seed
        self._disks = {name: Disk(saves, "data.h5" if sabotage else "") for name, saves in recorded.items()}
        self._floors = {name: announced_steps(saves.calls) for name, saves in recorded.items()}
        self._digests = dict(digest_checkpoint(path) for path in whole.glob("step-*"))
        self._trials, self._by_kind, self._failures = 0, Counter[str](), []  # type: ignore[var-annotated]
        self._loaded, self._none, self._passed_over = 0, 0, 0

    def run(self, first: int, num_trials: int) -> Iterator[None]:
        """Make trials number `first` and on; yield after each."""
        names = sorted(self._disks)
        with tempfile.TemporaryDirectory(prefix="crash-state-", dir=fast_folder()) as own:
            for index in range(first, first + num_trials):
                self._make_trial(index, names[index % len(names)], Path(own, "state"))
                yield

    def summary(self) -> dict[str, Any]:
        """Return what was found."""
        return {
            "trials": self._trials,
            "by_kind": dict(self._by_kind),
            "system_calls_logged": {name: len(disk.calls) for name, disk in self._disks.items()},
            "loaded": self._loaded,
            "nothing_to_load": self._none,
            "checkpoints_passed_over": self._passed_over,
            "failures": self._failures,
        }

    def _make_trial(self, index: int, name: str, state: Path) -> None:
        draw = random.Random(f"{self._seed} {index}")
        disk, floors = self._disks[name], self._floors[name]
        position = draw.randint(0, len(disk.calls))
        names, contents = draw.choice(SURVIVALS), draw.choice(SURVIVALS)
        block, noise = draw.choice((512, 4096)), draw.random() < 0.5
        disk.build(position, names, contents, block, noise, draw, state)
        self._trials += 1
        self._by_kind[name] += 1
        problem = self._judge(state / RUN / "checkpoints", floors[position])
        if problem:
            kept = self._folder / f"state-{index}"
            shutil.copytree(state, kept)
            call = disk.calls[position - 1] if position else None
            self._failures.append(
                {
                    "trial": index,
                    "kind": name,
                    "position": position,
                    "after": f"{call.operation} {call.path} {call.other}" if call else "",
                    "names": names,
                    "contents": contents,
                    "block": block,
                    "noise": noise,
                    "problem": problem,
                    "folder": str(kept),
                }
            )
        shutil.rmtree(state)

    def _judge(self, checkpoints: Path, floor: int) -> str:
        """Return what is wrong with what the loader makes of a state; "" if nothing is."""
        from lepton_mpi.checkpoint.resume import find_resumable
        from lepton_mpi.errors import CheckpointError
        from lepton_mpi.runtime.mpi import MPI

        log = _CountingLog()
        try:
            found = find_resumable(MPI.COMM_SELF, checkpoints, log)
        except CheckpointError as error:
            return f"refused to start: {error}"
        finally:
            self._passed_over += log.num_warnings
        if found is None:
            self._none += 1
            return f"nothing to resume from, but step {floor} was announced" if floor else ""
        self._loaded += 1
        step, digest = digest_checkpoint(found)
        if self._digests.get(step) != digest:
            return f"loaded step {step} with other values than were saved"
        return f"loaded step {step}, but step {floor} was announced" if step < floor else ""


class _CountingLog(logging.Logger):
    """Counts warnings."""

    def __init__(self) -> None:
        super().__init__("power loss")
        self.num_warnings = 0

    def warning(self, *args: Any, **kwargs: Any) -> None:
        """Count a warning."""
        self.num_warnings += 1


def announced_steps(calls: list[Call]) -> list[int]:
    """Return, for each number of calls made, the newest step that was announced by then and not damaged on purpose since."""
    floors, announced = [0], set[int]()
    for call in calls:
        if call.operation == "w":
            announced |= set(map(int, ANNOUNCED.findall(call.data)))
            if call.process[0] == DAMAGER:
                announced.discard(int(Path(call.path).parent.name[5:]))
        floors.append(max(announced, default=0))
    return floors


def digest_checkpoint(path: Path) -> tuple[int, str]:
    """Return the step of a checkpoint and the digest of everything it holds."""
    from lepton_mpi.checkpoint.reader import CheckpointReader

    digest = hashlib.sha256()
    with CheckpointReader(path) as reader:
        digest.update(repr([reader.attributes[name] for name in ("step", "epoch", "position", "best", "stale")]).encode())
        for name, info in reader.tensors.items():
            digest.update(f"{name} {info}".encode() + reader.read(name, (0,) * len(info.shape), info.shape).tobytes())
        return reader.step, digest.hexdigest()
