"""What of a run goes into a checkpoint, and how it comes back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.checkpoint.layout import TensorSlice
from lepton_mpi.checkpoint.reader import CheckpointReader
from lepton_mpi.checkpoint.writer import write_checkpoint
from lepton_mpi.comm.agreement import do_on_all, do_on_root
from lepton_mpi.comm.contract import collective
from lepton_mpi.data.normalisation import Normalisation
from lepton_mpi.errors import CheckpointError
from lepton_mpi.models.family import DataShape
from lepton_mpi.nn.parameter import ParameterBlock
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.runtime.ranges import split_range
from lepton_mpi.train.averaging import EMA_SLOT
from lepton_mpi.train.network import Network
from lepton_mpi.train.state import TrainState

# Where a checkpoint has the weights, and where their moving average.
PARAM = "/param"
AVERAGE = f"/opt/{EMA_SLOT}"
_NORMALISATION = "/normalisation"


@collective("grid.world")
def save(network: Network, normalisation: Normalisation, state: TrainState, root: Path, driver: str) -> Path:
    """Write a checkpoint of parameters, optimizer state, and where the run is.

    Collective over grid.world. Every block is written by the ranks that share it on one node, some rows each.

    Args:
        network: the network.
        normalisation: how inputs were normalised, for later predictions.
        state: where the run is.
        root: folder of the run's checkpoints.
        driver: see `CheckpointConfig.driver`.

    Returns:
        Folder of the checkpoint.

    Raises:
        CheckpointError: it could not be written; older checkpoints are untouched.
    """
    grid, slices = network.grid, []
    for block, kind, array, (first, last) in _owned_rows(network):
        if grid.is_first_data_node and block.is_primary:
            starts = (block.starts[0] + first, *block.starts[1:])
            slices.append(TensorSlice(f"{kind}/{block.name}", block.spec.shape, starts, array[first:last]))
    if grid.rank == 0:
        for name, values in normalisation.to_arrays().items():
            slices.append(TensorSlice(f"{_NORMALISATION}/{name}", values.shape, (0,) * values.ndim, values))
    model = network.model
    attributes: dict[str, str | int | float] = {
        "epoch": state.epoch,
        "position": state.position,
        "best": state.best,
        "stale": state.stale,
        "grid": json.dumps(asdict(grid.shape)),
        "family": model.family,
        "task": model.task.name,
        "data_shape": json.dumps(asdict(model.data)),
    }
    return write_checkpoint(grid.world, root, state.step, slices, attributes, driver)


@collective("grid.world")
def load(network: Network, path: Path, kind: str = PARAM) -> tuple[TrainState, Normalisation]:
    """Read a checkpoint into the network, whatever grid wrote it.

    Collective over grid.world. Each rank reads only the rows it is to fill.

    Args:
        network: the network; its optimizer slots are read too, if it has any.
        path: folder of a checkpoint.
        kind: what of it becomes the values, `PARAM` or `AVERAGE`.

    Returns:
        Where the run was, and how inputs were normalised.

    Raises:
        CheckpointError: it belongs to another model or optimizer, or cannot be read; on all ranks alike.
    """
    result = do_on_all(network.grid.world, lambda: _read_own_rows(network, path, kind))  # also: all rows of this node are in place
    network.memory.upload()
    return result


def _read_own_rows(network: Network, path: Path, values_kind: str) -> tuple[TrainState, Normalisation]:
    with CheckpointReader(path) as reader:
        _require_fit(network, reader, values_kind)
        for block, kind, array, (first, last) in _owned_rows(network):
            starts = (block.starts[0] + first, *block.starts[1:])
            rows = array[first:last]
            rows[...] = reader.read(f"{values_kind if kind == PARAM else kind}/{block.name}", starts, rows.shape)
        return read_state(reader), read_normalisation(reader)


def read_state(reader: CheckpointReader) -> TrainState:
    """Return where a run was. Local."""
    found = reader.attributes
    best, stale = float(found.get("best", math.nan)), int(found.get("stale", 0))
    return TrainState(reader.step, int(found["epoch"]), int(found["position"]), best, stale)


@collective("comm")
def read_data_shape(comm: MPI.Intracomm, path: Path) -> tuple[DataShape, bool]:
    """Return what the data of a checkpoint's model look like, and whether it holds averaged weights.

    Collective over comm.

    Args:
        comm: all ranks.
        path: folder of a checkpoint; rank 0's counts.

    Raises:
        CheckpointError: the checkpoint cannot be read, or does not say; on all ranks alike.
    """

    def read() -> tuple[DataShape, bool]:
        with CheckpointReader(path) as reader:
            return data_shape_of(reader), any(name.startswith(AVERAGE + "/") for name in reader.tensors)

    return do_on_root(comm, read)


def data_shape_of(reader: CheckpointReader) -> DataShape:
    """Return what the data of a checkpoint's model look like. Local.

    Raises:
        CheckpointError: the checkpoint does not say.
    """
    try:
        found = json.loads(str(reader.attributes["data_shape"]))
        input_shape, label_shape, id_counts = (tuple(map(int, found[name])) for name in ("input_shape", "label_shape", "id_counts"))
        return DataShape(input_shape, int(found["num_classes"]), label_shape, id_counts)
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"the checkpoint of step {reader.step} does not say the data_shape of its model ({error!r}); take one that "
            "training wrote"
        ) from error


def read_normalisation(reader: CheckpointReader) -> Normalisation:
    """Return how the inputs of a checkpoint's model are normalised. Local.

    Raises:
        CheckpointError: the checkpoint does not say.
    """
    prefix = _NORMALISATION + "/"
    found = {path: info.shape for path, info in reader.tensors.items() if path.startswith(prefix)}
    arrays = {path.removeprefix(prefix): reader.read(path, (0,) * len(shape), shape) for path, shape in found.items()}
    return Normalisation.from_arrays(arrays)


def _owned_rows(network: Network) -> Iterator[tuple[ParameterBlock, str, NDArray[np.float32], tuple[int, int]]]:
    """Yield every array of this rank's model part, and which of its rows this rank reads or writes."""
    memory, ranks = network.memory, network.grid.data_in_node
    buffers = {PARAM: memory.values} | {f"/opt/{name}": slot for name, slot in memory.slots.items()}
    for index, block in enumerate(memory.layout.blocks):
        rows = split_range(block.shape[0], ranks.Get_size(), ranks.Get_rank())
        for kind, buffer in buffers.items():
            yield block, kind, memory.layout.view(index, buffer), rows


def own_rows(network: Network) -> Iterator[NDArray[np.float32]]:
    """Yield the rows of each of this rank's blocks of weights that it reads from checkpoints, to look at or to change. Local."""
    for _, kind, array, (first, last) in _owned_rows(network):
        if kind == PARAM:
            yield array[first:last]


def _require_fit(network: Network, reader: CheckpointReader, values_kind: str) -> None:
    """Refuse a checkpoint of another model, naming the first tensor that differs."""
    kinds = [PARAM, values_kind, *(f"/opt/{name}" for name in network.memory.slots)]
    float32 = np.dtype(np.float32)
    expected: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
        f"{kind}/{spec.name}": (spec.shape, float32) for kind in kinds for spec in network.model.parameters
    }
    others = {path: (info.shape, info.dtype) for path, info in reader.tensors.items() if _is_other(path, network)}
    reader.require(expected | others)
    missing = {"epoch", "position"} - set(reader.attributes)
    if missing:
        raise CheckpointError(f"the checkpoint does not say its {' and '.join(sorted(missing))}; it is not of a training run")


def _is_other(path: str, network: Network) -> bool:
    """Whether a tensor is none that must fit: with no optimizer at hand (inference), its state is not looked at."""
    return path.startswith(_NORMALISATION + "/") or (path.startswith("/opt/") and not network.memory.slots)
