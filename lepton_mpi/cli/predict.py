"""`python -m lepton_mpi predict`: what a trained model says of the samples of a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.cli.arguments import PredictArguments
from lepton_mpi.cli.ensemble import predict_together, restore_models
from lepton_mpi.cli.output import Output
from lepton_mpi.cli.trained_model import TrainedModel
from lepton_mpi.comm.agreement import do_on_all, raise_together
from lepton_mpi.comm.contract import collective
from lepton_mpi.data.dataset import Dataset
from lepton_mpi.data.splits import open_inputs, open_together
from lepton_mpi.data.storage.packed import is_packed
from lepton_mpi.data.validation import check_file, guess_format
from lepton_mpi.errors import LeptonError
from lepton_mpi.models.family import ModelSpec
from lepton_mpi.runtime.logs import start_logging
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.train.objective import data_needs, predicts_classes


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
        models = restore_models(comm, arguments)
        needs = data_needs(arguments.config.model)
        (dataset,) = open_together(
            lambda: [open_inputs(arguments.input, _known_format(arguments), arguments.config.data, needs)], comm
        )
        try:
            _write_all(comm, models, dataset, arguments)
        except _ReaderGone:
            raise BrokenPipeError from None
        for model in models:
            model.network.grid.free()


def _known_format(arguments: PredictArguments) -> str:
    """Return the format of the input, empty where the file itself tells. Local.

    Text and tokens have no mark of their own: files that tell nothing are as those that the model was trained on.
    """
    if arguments.format:
        return arguments.format
    if is_packed(arguments.input):
        return "packed"
    path, own = Path(arguments.input), arguments.config.data.format
    if arguments.input == "digits" and not path.exists():
        return "digits"
    if own not in ("text", "pystdlib", "tokens"):
        return ""
    if path.is_dir() or (path.is_file() and check_file(arguments.input) and guess_format(arguments.input) is None):
        return "tokens" if own == "tokens" else "text"
    return ""


@collective("comm")
def _write_all(comm: MPI.Intracomm, models: Sequence[TrainedModel], dataset: Dataset, arguments: PredictArguments) -> None:
    """Predict batch by batch, and write each on rank 0. Collective over comm; an error of rank 0 ends all."""
    output = _open_output(comm, arguments.output)
    try:
        table = _Table(models[0].network.model, arguments.probabilities)
        first, header = 0, table.header  # which waits for the first predictions: data that do not fit leave nothing behind
        for predictions in predict_together(models, dataset):
            _write(comm, output, header + table.format_rows(first, predictions))
            first, header = first + len(predictions), ""
        _write(comm, output, header, last=True)
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


class _Table:
    """Predictions as CSV: one line for each sample, pixel or position. Six digits are what fp32 sums in any order agree on.

    Tasks with classes have the most probable class and its probability, or those of all classes; others their values.
    """

    def __init__(self, model: ModelSpec, want_all: bool) -> None:
        *positions, num_outputs = model.output_shape
        self._has_classes = predicts_classes(model)
        self._want_all = want_all
        if model.task.name == "ranking":
            num_outputs = 1  # that of the sample's own item; the other one was drawn for the loss
        self._num_values = num_outputs
        places = [f"position_{dim}" for dim in range(len(positions))] if len(positions) > 1 else ["position"] * len(positions)
        if self._has_classes:
            columns = ["class", *([f"probability_{c}" for c in range(num_outputs)] if want_all else ["probability"])]
        else:
            name = "probability" if model.task.name == "binary" else "score" if model.task.name == "ranking" else "value"
            columns = [name] if num_outputs == 1 else [f"{name}_{d}" for d in range(num_outputs)]
        self.header = ",".join(["index", *places, *columns]) + "\n"

    def format_rows(self, first: int, predictions: NDArray[np.float32]) -> str:
        """Return the lines of samples numbered from `first`."""
        rows = predictions.reshape(-1, predictions.shape[-1])
        places = np.indices(predictions.shape[:-1]).reshape(predictions.ndim - 1, -1).T
        places[:, 0] += first
        shown, classes = rows[:, : self._num_values], None
        if self._has_classes:
            classes = rows.argmax(axis=1)
            shown = rows if self._want_all else np.take_along_axis(rows, classes[:, None], axis=1)
        lines = []
        for i, (place, values) in enumerate(zip(places.tolist(), shown.tolist(), strict=True)):
            cells = [*map(str, place), *([str(classes[i])] if classes is not None else []), *(f"{v:.6g}" for v in values)]
            lines.append(",".join(cells) + "\n")
        return "".join(lines)
