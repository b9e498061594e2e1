"""`python -m lepton_mpi fuse`: one set of weights out of several checkpoints or runs.

Sources: Izmailov et al. 2018, "Averaging weights leads to wider optima and better generalization" (checkpoints of one run);
Wortsman et al. 2022, "Model soups" (several runs; greedy is their recipe 1).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.checkpoint.commit import list_checkpoints
from lepton_mpi.checkpoint.integrity import verify_checkpoint
from lepton_mpi.cli.arguments import FuseArguments, run_of
from lepton_mpi.cli.test_set import open_own_test_set
from lepton_mpi.cli.trained_model import TrainedModel, newest_checkpoint, restore_checkpoint
from lepton_mpi.comm.agreement import do_on_root
from lepton_mpi.comm.contract import collective
from lepton_mpi.data.loader import Loader
from lepton_mpi.data.normalisation import Normalisation
from lepton_mpi.errors import CheckpointError, ConfigError, LeptonError
from lepton_mpi.runtime.logs import start_logging
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.train.inference import evaluate
from lepton_mpi.train.model_folder import complete_model_folder
from lepton_mpi.train.network import Network
from lepton_mpi.train.objective import make_metrics
from lepton_mpi.train.resume import AVERAGE, PARAM, load, own_rows, read_data_shape, save
from lepton_mpi.train.state import TrainState

# Of equal statistics measured by other numbers of ranks, the last digits differ.
_SAME_NORMALISATION = 1e-5


@collective("comm")
def run_fuse(comm: MPI.Intracomm, arguments: FuseArguments) -> None:
    """Fuse as asked and say on rank 0 what became of it.

    Collective over comm. Every rank adds up the rows of the weights that it reads.

    Raises:
        LeptonError: sources that do not fit each other, or files that cannot be read or written; on all ranks alike.
    """
    with start_logging(comm.Get_rank(), comm.Get_size(), None, "WARNING"):
        do_on_root(comm, lambda: _require_new_folder(arguments.output))
        checkpoints = _find_checkpoints(comm, arguments)
        model = restore_checkpoint(comm, arguments.config, checkpoints[0])
        fusion = _Fusion(comm, model, checkpoints)
        if arguments.method == "greedy":
            used, notes = _fuse_greedily(comm, fusion, arguments)
        else:
            decay = arguments.decay if arguments.method == "ema" else None
            used, notes = _fuse_all(fusion, decay), []
        root = arguments.output / "checkpoints"
        try:
            written = save(model.network, model.normalisation, fusion.last_state, root, arguments.config.checkpoint.driver)
        except LeptonError:
            _remove_empty(root, arguments.output)
            raise
        do_on_root(comm, lambda: complete_model_folder(arguments.output, written, arguments.config))
        model.network.grid.free()
    if comm.Get_rank() == 0:
        names = ", ".join(_short_name(path) for path in used)
        lines = [
            *notes,
            f"fused {len(used)} of {len(checkpoints)} checkpoint(s) ({arguments.method}: {names}) into {arguments.output}",
        ]
        sys.stdout.write("\n".join(lines) + "\n")


class _Fusion:
    """Weights of checkpoints in turn in one network, and sums of the rows that this rank reads of them."""

    def __init__(self, comm: MPI.Intracomm, model: TrainedModel, checkpoints: Sequence[Path]) -> None:
        self._comm = comm
        self.model = model
        self.network: Network = model.network
        self.checkpoints = tuple(checkpoints)
        self._normalisation: Normalisation = model.normalisation
        self.last_state: TrainState = model.state

    @collective("comm")
    def read(self, path: Path) -> list[NDArray[np.float64]]:
        """Bring a checkpoint's weights, averaged ones if it has them, into the network, and return the own rows.

        Collective over comm.
        """
        data, averaged = read_data_shape(self._comm, path)
        expected = self.network.model.data
        if data != expected:
            raise CheckpointError(
                f"{path}: its model was made for {data}, that of {self.checkpoints[0]} for {expected}: fuse runs on the same data"
            )
        state, normalisation = load(self.network, path, AVERAGE if averaged else PARAM)
        _require_same_normalisation(self._normalisation, normalisation, path, self.checkpoints[0])
        if state.step >= self.last_state.step:
            self.last_state = state
        return [rows.astype(np.float64) for rows in own_rows(self.network)]

    @collective("comm")
    def put(self, rows: Sequence[NDArray[np.float64]]) -> None:
        """Make rows the weights of the network. Collective over comm."""
        for values, new in zip(own_rows(self.network), rows, strict=True):
            values[...] = new
        self._comm.Barrier()  # all rows of this node are in place
        self.network.memory.upload()


@collective("comm")
def _fuse_all(fusion: _Fusion, decay: float | None) -> tuple[Path, ...]:
    """Average all checkpoints: alike, or with a decay. Collective over comm."""
    total = fusion.read(fusion.checkpoints[0])
    for number, path in enumerate(fusion.checkpoints[1:], 2):
        share = 1 / number if decay is None else 1 - decay
        for sums, rows in zip(total, fusion.read(path), strict=True):
            sums += share * (rows - sums)
    fusion.put(total)
    return fusion.checkpoints


@dataclass(frozen=True)
class _Judge:
    """Tells on the test set how good the network's present weights are."""

    network: Network
    loader: Loader
    metric: str
    higher: bool

    @collective("grid.world")
    def value(self) -> float:
        """Return the metric, turned so that higher is better. Collective over grid.world."""
        found = evaluate(self.network, self.loader).values[self.metric]
        return found if self.higher else -found

    def show(self, value: float) -> str:
        """Return a value as people know it."""
        return f"{self.metric} {value if self.higher else -value:.4f}"


@collective("comm")
def _fuse_greedily(comm: MPI.Intracomm, fusion: _Fusion, arguments: FuseArguments) -> tuple[tuple[Path, ...], list[str]]:
    """Add checkpoints, best first, as long as the metric does not fall. Collective over comm."""
    network = fusion.network
    metric, higher = make_metrics(network.model).choose(arguments.metric)
    dataset = open_own_test_set(comm, arguments.config, network.model)
    judge = _Judge(network, fusion.model.loader(dataset, evaluating=True), metric, higher)
    values = []
    for path in fusion.checkpoints:
        fusion.read(path)
        values.append(judge.value())
    order = sorted(range(len(values)), key=lambda i: -values[i])
    notes = [f"{_short_name(fusion.checkpoints[i])}: {judge.show(values[i])}" for i in order]
    used, best = [fusion.checkpoints[order[0]]], values[order[0]]
    total = fusion.read(used[0])
    for i in order[1:]:
        path = fusion.checkpoints[i]
        trial = [sums + (rows - sums) / (len(used) + 1) for sums, rows in zip(total, fusion.read(path), strict=True)]
        fusion.put(trial)
        value = judge.value()
        if value >= best:
            total, best = trial, value
            used.append(path)
    fusion.put(total)
    return tuple(used), [*notes, f"together: {judge.show(best)}"]


@collective("comm")
def _find_checkpoints(comm: MPI.Intracomm, arguments: FuseArguments) -> list[Path]:
    """Return the whole checkpoints that the sources name, oldest first within a run. Collective over comm."""
    if len(arguments.sources) > 1:
        found = [path if run_of(path) != path else newest_checkpoint(comm, path) for path in arguments.sources]
    else:
        run = arguments.sources[0]
        found = [run] if run_of(run) != run else do_on_root(comm, lambda: list_checkpoints(run / "checkpoints")[::-1])
        found = found[-arguments.last :] if arguments.last else found
    for path in found:
        verify_checkpoint(comm, path)
    if not found:
        raise CheckpointError(f"{arguments.sources[0]}: no checkpoint to fuse: train first, or give another folder")
    return found


def _require_new_folder(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"--output: expected a folder that does not exist yet or is empty, got {path}")


def _remove_empty(*folders: Path) -> None:
    """Remove folders that hold nothing, so that the same --output can be given again. Local, and never raises."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _require_same_normalisation(first: Normalisation, other: Normalisation, path: Path, first_path: Path) -> None:
    ours, theirs = first.to_arrays(), other.to_arrays()
    if ours.keys() != theirs.keys() or any(
        a.shape != theirs[name].shape or not np.allclose(a, theirs[name], rtol=_SAME_NORMALISATION) for name, a in ours.items()
    ):
        raise CheckpointError(
            f"{path}: its inputs were normalised otherwise than those of {first_path}: fuse runs on the same training data"
        )


def _short_name(path: Path) -> str:
    return f"{path.parent.parent.name}/{path.name}"
