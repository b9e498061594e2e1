"""The test set of a trained model: its run's own, or the one that the command line names."""

from __future__ import annotations

from dataclasses import replace

from lepton_mpi.comm.contract import collective
from lepton_mpi.config.checks import check_config
from lepton_mpi.config.schema import Config, DataConfig
from lepton_mpi.data.dataset import Dataset
from lepton_mpi.data.splits import open_test_set, open_together
from lepton_mpi.data.storage.packed import is_packed
from lepton_mpi.data.validation import check_file, guess_format
from lepton_mpi.errors import DataError
from lepton_mpi.models.family import ModelSpec
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.train.objective import data_needs


@collective("comm")
def open_own_test_set(comm: MPI.Intracomm, config: Config, model: ModelSpec) -> Dataset:
    """Open the data to evaluate on, with the classes of the model. Collective over comm."""
    needs = data_needs(config.model)
    (dataset,) = open_together(lambda: [open_test_set(_complete(config.data, model), needs)], comm)
    if dataset.num_samples == 0:
        raise DataError(
            f"{dataset.name}: expected samples to evaluate on, found none (data.test_fraction is 0): give --data.test_path"
        )
    return dataset


def _complete(data: DataConfig, model: ModelSpec) -> DataConfig:
    """Return the section with the format of the test file, if that is still to be told. Local."""
    if not data.format:
        name: str | None = "packed"
        if not is_packed(data.test_path):
            check_file(data.test_path)
            name = guess_format(data.test_path)
        if name is None:
            raise DataError(f"{data.test_path}: neither its first bytes nor its name tell the format: give --data.format")
        data = replace(data, format=name)
    data = replace(data, num_classes=model.data.num_classes)
    check_config(replace(Config(), data=data))
    return data
