"""A trained model from a run folder, on any number of ranks, for use without training."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import final

from lepton_mpi.checkpoint.resume import find_resumable
from lepton_mpi.comm.contract import collective
from lepton_mpi.config.schema import Config
from lepton_mpi.data.dataset import Dataset, Reshaped
from lepton_mpi.data.loader import Loader
from lepton_mpi.data.normalisation import Normalisation
from lepton_mpi.errors import CheckpointError, DataError
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.train.inference import inference_loader
from lepton_mpi.train.network import Network, build_network, choose_shape, declare_model
from lepton_mpi.train.resume import load, read_model_shape
from lepton_mpi.train.run import choose_device
from lepton_mpi.train.state import TrainState

_log = logging.getLogger(__name__)


@final
@dataclass(frozen=True)
class TrainedModel:
    """A model as a checkpoint holds it.

    Attributes:
        network: the model on its grid, without optimizer state.
        normalisation: how inputs are normalised.
        input_shape: shape of a sample.
        num_classes: number of classes.
        checkpoint: folder of the checkpoint.
        state: how far it was trained.
    """

    network: Network
    normalisation: Normalisation
    input_shape: tuple[int, ...]
    num_classes: int
    checkpoint: Path
    state: TrainState

    def loader(self, dataset: Dataset) -> Loader:
        """Return batches of a data set in order. Local.

        Samples may also be flat: CSV knows no other shape.

        Raises:
            DataError: samples have another shape than the model takes.
        """
        size = math.prod(self.input_shape)
        if dataset.input_shape not in (self.input_shape, (size,)):
            raise DataError(
                f"{dataset.name}: the model takes samples of shape {self.input_shape}, or flat ones of {size} values, found "
                f"{dataset.input_shape}: give data like that it was trained on"
            )
        return inference_loader(self.network, Reshaped(dataset, self.input_shape), self.normalisation)


@collective("comm")
def restore_model(comm: MPI.Intracomm, config: Config, run: Path) -> TrainedModel:
    """Read the newest whole checkpoint of a run onto the grid that a configuration gives.

    Collective over comm.

    Args:
        comm: all ranks.
        config: model, grid and device.
        run: the run folder.

    Raises:
        CheckpointError: there is no checkpoint, all are damaged, or they are of another model.
        GridError: the grid does not fit the ranks or the model.
    """
    checkpoint = find_resumable(comm, run / "checkpoints", _log)
    if checkpoint is None:
        raise CheckpointError(f"run folder {run}: no checkpoint in {run / 'checkpoints'}: train first, or give another folder")
    input_shape, num_classes = read_model_shape(comm, checkpoint)
    model = declare_model(config.model, math.prod(input_shape), num_classes)
    shape = choose_shape(config.grid, model, comm.Get_size())
    xp = choose_device(comm, config.run.device)
    network = build_network(comm, shape, config.grid.ranks_per_node, model, (), config.reduce.bucket_mib, xp)
    state, normalisation = load(network, checkpoint)
    return TrainedModel(network, normalisation, input_shape, num_classes, checkpoint, state)
