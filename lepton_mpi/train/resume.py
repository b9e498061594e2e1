"""What of a run goes into a checkpoint, and how it comes back."""

from __future__ import annotations

import json
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
from lepton_mpi.nn.parameter import ParameterBlock
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.runtime.ranges import split_range
from lepton_mpi.train.network import Network
from lepton_mpi.train.state import TrainState

_NORMALISATION = "/normalisation"


@collective("grid.world")
def save(
    network: Network, normalisation: Normalisation, state: TrainState, root: Path, driver: str, input_shape: tuple[int, ...]
) -> Path:
    """Write a checkpoint of parameters, optimizer state, and where the run is.

    Collective over grid.world. Every block is written by the ranks that share it on one node, some rows each.

    Args:
        network: the network.
        normalisation: how inputs were normalised, for later predictions.
        state: where the run is.
        root: folder of the run's checkpoints.
        driver: see `CheckpointConfig.driver`.
        input_shape: shape of a sample, for later predictions.

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
        "grid": json.dumps(asdict(grid.shape)),
        "family": model.family,
        "num_classes": model.num_classes,
        "input_shape": json.dumps(input_shape),
    }
    return write_checkpoint(grid.world, root, state.step, slices, attributes, driver)


@collective("grid.world")
def load(network: Network, path: Path) -> tuple[TrainState, Normalisation]:
    """Read a checkpoint into the network, whatever grid wrote it.

    Collective over grid.world. Each rank reads only the rows it is to fill.

    Args:
        network: the network; its optimizer slots are read too, if it has any.
        path: folder of a checkpoint.

    Returns:
        Where the run was, and how inputs were normalised.

    Raises:
        CheckpointError: it belongs to another model or optimizer, or cannot be read; on all ranks alike.
    """
    result = do_on_all(network.grid.world, lambda: _read_own_rows(network, path))  # also: all rows of this node are in place
    network.memory.upload()
    return result


def _read_own_rows(network: Network, path: Path) -> tuple[TrainState, Normalisation]:
    with CheckpointReader(path) as reader:
        _require_fit(network, reader)
        for block, kind, array, (first, last) in _owned_rows(network):
            starts = (block.starts[0] + first, *block.starts[1:])
            rows = array[first:last]
            rows[...] = reader.read(f"{kind}/{block.name}", starts, rows.shape)
        attributes = reader.attributes
        state = TrainState(reader.step, int(attributes["epoch"]), int(attributes["position"]))
        return state, read_normalisation(reader)


@collective("comm")
def read_model_shape(comm: MPI.Intracomm, path: Path) -> tuple[tuple[int, ...], int]:
    """Return the shape of a sample and the number of classes of a checkpoint's model.

    Collective over comm.

    Args:
        comm: all ranks.
        path: folder of a checkpoint; rank 0's counts.

    Raises:
        CheckpointError: the checkpoint cannot be read, or does not say; on all ranks alike.
    """

    def read() -> tuple[tuple[int, ...], int]:
        with CheckpointReader(path) as reader:
            return _model_shape(reader)

    return do_on_root(comm, read)


def _model_shape(reader: CheckpointReader) -> tuple[tuple[int, ...], int]:
    attributes = reader.attributes
    try:
        input_shape = tuple(int(size) for size in json.loads(str(attributes["input_shape"])))
        return input_shape, int(attributes["num_classes"])
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"the checkpoint of step {reader.step} does not say the input_shape and num_classes of its model ({error!r}); "
            "take one that training wrote"
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
    buffers = {"/param": memory.values} | {f"/opt/{name}": slot for name, slot in memory.slots.items()}
    for index, block in enumerate(memory.layout.blocks):
        rows = split_range(block.shape[0], ranks.Get_size(), ranks.Get_rank())
        for kind, buffer in buffers.items():
            yield block, kind, memory.layout.view(index, buffer), rows


def _require_fit(network: Network, reader: CheckpointReader) -> None:
    """Refuse a checkpoint of another model, naming the first tensor that differs."""
    kinds = ["/param", *(f"/opt/{name}" for name in network.memory.slots)]
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
