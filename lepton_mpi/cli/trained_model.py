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
from lepton_mpi.data.loader import Loader, Preparation, prepared_shape
from lepton_mpi.data.normalisation import Normalisation
from lepton_mpi.errors import CheckpointError, DataError
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.train.inference import inference_loader, suitable_batch
from lepton_mpi.train.network import Network, build_network, choose_shape, declare_model
from lepton_mpi.train.objective import make_preparation
from lepton_mpi.train.resume import AVERAGE, PARAM, load, read_data_shape
from lepton_mpi.train.run import choose_device, read_precision
from lepton_mpi.train.state import TrainState

_log = logging.getLogger(__name__)


@final
@dataclass(frozen=True)
class TrainedModel:
    """A model as a checkpoint holds it.

    Attributes:
        network: the model on its grid, without optimizer state.
        normalisation: how inputs are normalised.
        preparation: what turns samples into questions, for predictions.
        judged: what turns them into questions and answers, for an evaluation.
        checkpoint: folder of the checkpoint.
        state: how far it was trained.
    """

    network: Network
    normalisation: Normalisation
    preparation: Preparation | None
    judged: Preparation | None
    checkpoint: Path
    state: TrainState

    def loader(self, dataset: Dataset, global_batch: int = 0, *, evaluating: bool = False) -> Loader:
        """Return batches of a data set in order, of `global_batch` samples or a suitable number. Local.

        Samples may also be flat: CSV knows no other shape.

        Args:
            dataset: the samples.
            global_batch: samples at a time; 0: `batch_size`.
            evaluating: whether metrics are to be found.

        Raises:
            DataError: samples have another shape than the model takes.
        """
        shape = self.network.model.data.input_shape
        size = math.prod(shape)
        if dataset.input_shape not in (shape, (size,)):
            raise DataError(
                f"{dataset.name}: the model takes samples of shape {shape}, or flat ones of {size} values, found "
                f"{dataset.input_shape}: give data like that it was trained on"
            )
        preparation = self.judged if evaluating else self.preparation
        return inference_loader(self.network, Reshaped(dataset, shape), self.normalisation, preparation, global_batch)

    def batch_size(self, *, evaluating: bool = False) -> int:
        """Return how many samples the ranks together may take at a time. Local."""
        preparation = self.judged if evaluating else self.preparation
        return suitable_batch(self.network.for_samples(prepared_shape(self.network.model.data.input_shape, preparation)))


@collective("comm")
def restore_model(comm: MPI.Intracomm, config: Config, run: Path) -> TrainedModel:
    """Read the newest whole checkpoint of a run onto the grid that a configuration gives.

    Collective over comm. Where the run kept a moving average of its weights, that is what is read.

    Args:
        comm: all ranks.
        config: model, grid and device.
        run: the run folder.

    Raises:
        CheckpointError: there is no checkpoint, all are damaged, or they are of another model.
        GridError: the grid does not fit the ranks or the model.
    """
    return restore_checkpoint(comm, config, newest_checkpoint(comm, run))


@collective("comm")
def restore_checkpoint(comm: MPI.Intracomm, config: Config, checkpoint: Path) -> TrainedModel:
    """Read one checkpoint, which is whole, onto the grid that a configuration gives. Collective over comm.

    Raises:
        CheckpointError: it is of another model.
        GridError: the grid does not fit the ranks or the model.
    """
    data, averaged = read_data_shape(comm, checkpoint)
    model = declare_model(config.model, data)
    shape = choose_shape(config.grid, model, comm.Get_size())
    xp = choose_device(comm, config.run.device)
    precision = read_precision(config.train.precision)
    network = build_network(comm, shape, config.grid.ranks_per_node, model, (), config.reduce.bucket_mib, xp, precision=precision)
    state, normalisation = load(network, checkpoint, AVERAGE if averaged else PARAM)
    preparation, judged = make_preparation(model, config.data, "predict"), make_preparation(model, config.data, "evaluate")
    return TrainedModel(network, normalisation, preparation, judged, checkpoint, state)


@collective("comm")
def newest_checkpoint(comm: MPI.Intracomm, run: Path) -> Path:
    """Return the newest whole checkpoint of a run.

    Collective over comm.

    Raises:
        CheckpointError: there is none.
    """
    checkpoint = find_resumable(comm, run / "checkpoints", _log)
    if checkpoint is None:
        raise CheckpointError(f"run folder {run}: no checkpoint in {run / 'checkpoints'}: train first, or give another folder")
    return checkpoint
