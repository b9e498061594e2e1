"""What of a run goes into a checkpoint, and how it comes back."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.checkpoint.hdf5 import AttributeValue
from lepton_mpi.checkpoint.layout import TensorSlice, cut_run
from lepton_mpi.checkpoint.reader import CheckpointReader
from lepton_mpi.checkpoint.storage import DEFAULT_STORAGE, Storage
from lepton_mpi.checkpoint.writer import write_checkpoint
from lepton_mpi.comm.agreement import do_on_all, do_on_root
from lepton_mpi.comm.contract import collective
from lepton_mpi.data.normalisation import Normalisation
from lepton_mpi.errors import CheckpointError
from lepton_mpi.models.family import DataShape
from lepton_mpi.nn.parameter import ParameterBlock
from lepton_mpi.parallel.extra_state import ExtraState
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.runtime.ranges import split_range
from lepton_mpi.train.averaging import EMA_SLOT
from lepton_mpi.train.network import Network
from lepton_mpi.train.state import TrainState

# Where a checkpoint has the weights, and where their moving average.
PARAM = "/param"
AVERAGE = f"/opt/{EMA_SLOT}"
_NORMALISATION = "/normalisation"


_log = logging.getLogger(__name__)


@collective("grid.world")
def save(
    network: Network,
    normalisation: Normalisation,
    state: TrainState,
    root: Path,
    driver: str,
    extras: Sequence[ExtraState] = (),
    storage: Storage = DEFAULT_STORAGE,
) -> Path:
    """Write a checkpoint of all that determines the rest of a run.

    Collective over grid.world.

    Args:
        network: the network.
        normalisation: how inputs were normalised, for later predictions.
        state: where the run is.
        root: folder of the run's checkpoints.
        driver: see `CheckpointConfig.driver`.
        extras: state beside parameters and optimizer slots.
        storage: see `Storage`.

    Returns:
        Folder of the checkpoint.

    Raises:
        CheckpointError: it could not be written; older checkpoints are untouched.
    """
    slices = slices_to_save(network, normalisation, extras)
    return write_checkpoint(network.grid.world, root, state.step, slices, attributes_to_save(network, state), driver, storage)


@collective("grid.world")
def slices_to_save(network: Network, normalisation: Normalisation, extras: Sequence[ExtraState] = ()) -> list[TensorSlice]:
    """Return what this rank writes of a checkpoint: views of live memory, to be read before the next update.

    Collective over grid.world. Every block is written by the ranks that share it on one node, some rows each.
    """
    slices = []
    for piece in _pieces(network):
        if piece.writes:
            slices.append(TensorSlice(f"{piece.kind}/{piece.block.name}", piece.block.spec.shape, piece.starts, piece.array))
    for extra in extras:
        shapes = extra.shapes()
        for extent in extra.extents_to_save():
            slices.append(TensorSlice(f"/{extra.group}/{extent.name}", shapes[extent.name], extent.starts, extent.array))
    if network.grid.rank == 0:
        for name, values in normalisation.to_arrays().items():
            slices.append(TensorSlice(f"{_NORMALISATION}/{name}", values.shape, (0,) * values.ndim, values))
    return slices


def attributes_to_save(network: Network, state: TrainState) -> dict[str, AttributeValue]:
    """Return the attributes of a checkpoint: where the run is, and what model it is of. Local."""
    model = network.model
    return {
        "epoch": state.epoch,
        "position": state.position,
        "best": state.best,
        "stale": state.stale,
        "epoch_samples": state.epoch_samples,
        "epoch_loss": state.epoch_loss,
        "epoch_correct": state.epoch_correct,
        "grid": json.dumps(asdict(network.grid.shape)),
        "family": model.family,
        "task": model.task.name,
        "data_shape": json.dumps(asdict(model.data)),
    }


@collective("grid.world")
def load(network: Network, path: Path, kind: str = PARAM, extras: Sequence[ExtraState] = ()) -> tuple[TrainState, Normalisation]:
    """Read a checkpoint into the network, whatever grid wrote it.

    Collective over grid.world. Each rank reads only what it is to fill.

    Args:
        network: the network; its optimizer slots are read too, if it has any.
        path: folder of a checkpoint.
        kind: what of it becomes the values, `PARAM` or `AVERAGE`.
        extras: state beside parameters and optimizer slots; a group that the checkpoint has not begins anew.

    Returns:
        Where the run was, and how inputs were normalised.

    Raises:
        CheckpointError: it belongs to another model or optimizer, or cannot be read; on all ranks alike.
    """
    grid = network.grid
    network.memory.settle()
    grid.node.Barrier()  # nobody still looks at the weights that are to go
    state, normalisation, groups = do_on_all(grid.world, lambda: _read_own(network, path, kind, extras))  # also: all is in place
    network.memory.upload()
    for extra in extras:
        if extra.group not in groups and extra.warns and grid.rank == 0:
            _log.warning("%s has no %s: it begins anew", path.name, extra.group)
        extra.loaded(extra.group in groups)
    return state, normalisation


def _read_own(
    network: Network, path: Path, values_kind: str, extras: Sequence[ExtraState]
) -> tuple[TrainState, Normalisation, set[str]]:
    with CheckpointReader(path) as reader:
        groups = {name.split("/")[1] for name in reader.tensors}
        _require_fit(network, reader, values_kind, extras)
        for piece in _pieces(network):
            kind = values_kind if piece.kind == PARAM else piece.kind
            piece.array[...] = reader.read(f"{kind}/{piece.block.name}", piece.starts, piece.array.shape)
        for extra in extras:
            for extent in extra.extents_to_load() if extra.group in groups else ():
                extent.array[...] = reader.read(f"/{extra.group}/{extent.name}", extent.starts, extent.array.shape)
        return read_state(reader), read_normalisation(reader), groups


def read_state(reader: CheckpointReader) -> TrainState:
    """Return where a run was. Local."""
    found = reader.attributes
    best, stale = float(found.get("best", math.nan)), int(found.get("stale", 0))
    samples = int(found.get("epoch_samples", 0))
    loss, correct = (float(found.get(name, 0.0)) for name in ("epoch_loss", "epoch_correct"))
    return TrainState(reader.step, int(found["epoch"]), int(found["position"]), best, stale, samples, loss, correct)


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


@dataclass(frozen=True, eq=False)
class _Piece:
    """Part of an array of this rank's model part that this rank reads, and maybe writes.

    Attributes:
        kind: `PARAM` or the path of an optimizer slot.
        block: the parameter that it belongs to.
        starts: where it begins in the whole parameter.
        array: the memory itself.
        writes: whether this rank writes it; others may hold it too.
    """

    kind: str
    block: ParameterBlock
    starts: tuple[int, ...]
    array: NDArray[np.float32]
    writes: bool


def _pieces(network: Network) -> Iterator[_Piece]:
    """Yield what this rank reads of parameters and optimizer slots; a node's ranks share the work."""
    memory, grid = network.memory, network.grid
    slots = {f"/opt/{name}": slot for name, slot in memory.slots.items()}
    whole = {PARAM: memory.values} if memory.ownership.pieces_differ else {PARAM: memory.values, **slots}
    ranks = grid.data_in_node
    for index, block in enumerate(memory.layout.blocks):
        first, last = split_range(block.shape[0], ranks.Get_size(), ranks.Get_rank())
        starts, writes = (block.starts[0] + first, *block.starts[1:]), grid.is_first_data_node and block.is_primary
        for kind, buffer in whole.items():
            yield _Piece(kind, block, starts, memory.layout.view(index, buffer)[first:last], writes)
        if memory.ownership.pieces_differ:
            yield from _owned_pieces(network, block, memory.layout.offsets[index], slots)


def _owned_pieces(network: Network, block: ParameterBlock, offset: int, slots: dict[str, NDArray[np.float32]]) -> Iterator[_Piece]:
    """Yield what this rank alone keeps of a parameter's slots: runs of the flat buffer, cut into blocks."""
    ownership = network.memory.ownership
    # Running statistics are on every node, with all their slots.
    writes = block.is_primary and (network.grid.is_first_data_node or block.spec.role == "weight")
    for low, high in ownership.owned:
        position = max(low, offset)
        for inner, shape in cut_run(block.shape, position - offset, min(high, offset + block.size) - offset):
            here = ownership.slot_range(position, position + math.prod(shape))
            starts = tuple(outer + start for outer, start in zip(block.starts, inner, strict=True))
            for kind, slot in slots.items():
                yield _Piece(kind, block, starts, slot[here].reshape(shape), writes)
            position += math.prod(shape)


def own_rows(network: Network) -> Iterator[NDArray[np.float32]]:
    """Yield the rows of each of this rank's blocks of weights that it reads from checkpoints, to look at or to change. Local."""
    for piece in _pieces(network):
        if piece.kind == PARAM:
            yield piece.array


def _require_fit(network: Network, reader: CheckpointReader, values_kind: str, extras: Sequence[ExtraState]) -> None:
    """Refuse a checkpoint of another model, naming the first tensor that differs."""
    kinds = [PARAM, values_kind, *(f"/opt/{name}" for name in network.memory.slots)]
    float32 = np.dtype(np.float32)
    expected: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
        f"{kind}/{spec.name}": (spec.shape, float32) for kind in kinds for spec in network.model.parameters
    }
    judged = {"/param/"} | ({"/opt/"} if network.memory.slots else set())
    for extra in extras:
        group = f"/{extra.group}/"
        if any(path.startswith(group) for path in reader.tensors):
            judged.add(group)
            expected |= {f"{group}{name}": (shape, float32) for name, shape in extra.shapes().items()}
    # What nobody here has a use for, such as optimizer state for inference, is not looked at.
    others = {p: (info.shape, info.dtype) for p, info in reader.tensors.items() if not p.startswith(tuple(judged))}
    reader.require(expected | {path: info for path, info in others.items() if path not in expected})
    missing = {"epoch", "position"} - set(reader.attributes)
    if missing:
        raise CheckpointError(f"the checkpoint does not say its {' and '.join(sorted(missing))}; it is not of a training run")
