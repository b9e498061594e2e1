"""`python -m lepton_mpi predict`: classify the samples of a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.cli.arguments import PredictArguments
from lepton_mpi.cli.output import Output
from lepton_mpi.cli.trained_model import TrainedModel, restore_model
from lepton_mpi.comm.agreement import do_on_all, raise_together
from lepton_mpi.comm.contract import collective
from lepton_mpi.data.dataset import Dataset
from lepton_mpi.data.splits import open_inputs, open_together
from lepton_mpi.errors import LeptonError
from lepton_mpi.runtime.logs import start_logging
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.train.inference import predict


class _ReaderGone(LeptonError):
    """Nobody reads standard output any more; on its way from rank 0 to the others."""


@collective("comm")
def run_predict(comm: MPI.Intracomm, arguments: PredictArguments) -> None:
    """Predict as asked; rank 0 writes.

    Collective over comm.

    Raises:
        LeptonError: model and data do not fit, one of them cannot be read, or the output cannot be written; on all
            ranks alike.
        BrokenPipeError: nobody reads standard output any more; on all ranks alike.
    """
    with start_logging(comm.Get_rank(), comm.Get_size(), None, "WARNING"):
        model = restore_model(comm, arguments.config, arguments.run)
        name = arguments.format or ("digits" if arguments.input == "digits" and not Path("digits").exists() else "")
        (dataset,) = open_together(lambda: [open_inputs(arguments.input, name, arguments.config.data)], comm)
        try:
            _write_all(comm, model, dataset, arguments)
        except _ReaderGone:
            raise BrokenPipeError from None
        model.network.grid.free()


@collective("comm")
def _write_all(comm: MPI.Intracomm, model: TrainedModel, dataset: Dataset, arguments: PredictArguments) -> None:
    """Predict batch by batch, and write each on rank 0. Collective over comm; an error of rank 0 ends all."""
    loader = model.loader(dataset)
    output = _open_output(comm, arguments.output)
    try:
        columns = [f"probability_{c}" for c in range(model.num_classes)] if arguments.probabilities else ["probability"]
        _write(comm, output, ",".join(["index", "class", *columns]) + "\n")
        first = 0
        for probabilities in predict(model.network, loader):
            _write(comm, output, _format_rows(first, probabilities, arguments.probabilities))
            first += len(probabilities)
        _write(comm, output, "", last=True)
    finally:
        if output is not None:
            output.close()


@collective("comm")
def _open_output(comm: MPI.Intracomm, path: Path | None) -> Output | None:
    """Open the output on rank 0, or raise on all. Collective over comm."""
    return do_on_all(comm, lambda: Output(path) if comm.Get_rank() == 0 else None)


@collective("comm")
def _write(comm: MPI.Intracomm, output: Output | None, text: str, last: bool = False) -> None:
    """Write on the rank that has the output, or raise on all. Collective over comm."""
    error: Exception | None = None
    if output is not None:
        try:
            output.write(text)
            if last:
                output.commit()
        except BrokenPipeError:
            error = _ReaderGone()
        except Exception as found:
            error = found
    raise_together(comm, error)


def _format_rows(first: int, probabilities: NDArray[np.float32], want_all: bool) -> str:
    """Return one line for each sample; six digits are what fp32 sums in any order agree on."""
    classes = probabilities.argmax(axis=1)
    shown = probabilities if want_all else np.take_along_axis(probabilities, classes[:, None], axis=1)
    rows = zip(classes.tolist(), shown.tolist(), strict=True)
    return "".join(f"{first + i},{c},{','.join(f'{p:.6g}' for p in row)}\n" for i, (c, row) in enumerate(rows))
