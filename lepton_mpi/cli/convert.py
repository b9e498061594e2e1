"""`python -m lepton_mpi convert`: a data set in a form that is fast to train on."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from lepton_mpi.cli.arguments import ConvertArguments
from lepton_mpi.comm.agreement import do_on_root
from lepton_mpi.comm.contract import collective
from lepton_mpi.config.schema import DataConfig
from lepton_mpi.data.dataset import Dataset
from lepton_mpi.data.needs import DataNeeds
from lepton_mpi.data.splits import open_datasets, open_whole
from lepton_mpi.data.storage.conversion import HDF5_SUFFIXES, Source, check_output, convert
from lepton_mpi.data.storage.packed import verify_packed
from lepton_mpi.data.storage.packed_hdf5 import verify_hdf5
from lepton_mpi.data.storage.packed_manifest import PackedManifest
from lepton_mpi.data.storage.spool import spooled
from lepton_mpi.runtime.logs import start_logging
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.train.objective import data_needs


@collective("comm")
def run_convert(comm: MPI.Intracomm, arguments: ConvertArguments) -> None:
    """Convert as asked, or verify, and say on rank 0 what was written or found.

    Collective over comm.

    Raises:
        LeptonError: the data cannot be read, the output cannot be written, or what is verified is damaged; on all ranks alike.
    """
    output, data = arguments.output, arguments.config.data
    with start_logging(comm.Get_rank(), comm.Get_size(), None, "WARNING"):
        if arguments.verify:
            is_file = output.suffix.lower() in HDF5_SUFFIXES
            manifest = (verify_hdf5 if is_file else verify_packed)(os.fspath(output), comm)
        else:
            do_on_root(comm, lambda: check_output(output))  # before a long table is read in vain
            needs = data_needs(arguments.config.model)
            with spooled(data, needs, output, comm) as readable:
                dataset = _open(readable, needs, arguments.split, comm)
                manifest = convert(dataset, Source(data.format, arguments.split), output, comm)
    if comm.Get_rank() == 0:
        sys.stdout.write(f"{'verified' if arguments.verify else 'wrote'} {output}: {describe(manifest)}\n")


def describe(manifest: PackedManifest) -> str:
    """Return one line about converted data. Local."""
    labels = {"class": f"{manifest.num_classes} classes", "value": "values as labels", "none": "no labels"}[manifest.label_kind]
    if manifest.layout == "tokens":
        what = f"{manifest.num_samples} tokens of {manifest.num_classes}"
    else:
        what = f"{manifest.num_samples} samples of shape {manifest.inputs.shape[1:]}, {labels}"
    mebibytes = sum(array.nbytes for array in manifest.arrays) / 2**20
    return f"{manifest.source_name}, {what}, {mebibytes:.2f} MiB"


@collective("comm")
def _open(data: DataConfig, needs: DataNeeds, split: str, comm: MPI.Intracomm) -> Dataset:
    """Open the part that is to be converted. Collective over comm."""
    if split == "all":
        return open_whole(data, comm, needs)
    # All that is held out, unless a number was asked for.
    data = replace(data, test_samples=max(data.test_samples, 0))
    if split == "test":
        data = replace(data, validation_fraction=0.0)  # else the validation set takes its place
    splits = open_datasets(data, comm, needs)
    return splits.train if split == "train" else splits.test
