"""`python -m lepton_mpi evaluate`: how well a trained model classifies a labelled data set."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from lepton_mpi.cli.arguments import EvaluateArguments
from lepton_mpi.cli.trained_model import TrainedModel, restore_model
from lepton_mpi.comm.contract import collective
from lepton_mpi.config.checks import check_config
from lepton_mpi.config.schema import Config, DataConfig
from lepton_mpi.data.dataset import Dataset
from lepton_mpi.data.splits import open_test_set, open_together
from lepton_mpi.data.validation import check_file, guess_format
from lepton_mpi.errors import DataError
from lepton_mpi.monitor.classification import ClassificationMetrics
from lepton_mpi.monitor.json_text import format_json
from lepton_mpi.runtime.logs import start_logging
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.train.inference import evaluate


@collective("comm")
def run_evaluate(comm: MPI.Intracomm, arguments: EvaluateArguments) -> None:
    """Evaluate as asked and print the result on rank 0.

    Collective over comm.

    Raises:
        LeptonError: model and data do not fit, or one of them cannot be read; on all ranks alike.
    """
    with start_logging(comm.Get_rank(), comm.Get_size(), None, "WARNING"):
        model = restore_model(comm, arguments.config, arguments.run)
        dataset = _open_test_set(comm, arguments.config.data, model.num_classes)
        metrics = evaluate(model.network, model.loader(dataset))
        model.network.grid.free()
    if comm.Get_rank() == 0:
        format_result = _format_json if arguments.json else _format_text
        sys.stdout.write(format_result(arguments.run, model, dataset, metrics))


@collective("comm")
def _open_test_set(comm: MPI.Intracomm, data: DataConfig, num_classes: int) -> Dataset:
    """Open the data to evaluate on, with the classes of the model. Collective over comm."""
    (dataset,) = open_together(lambda: [open_test_set(_complete(data, num_classes))], comm)
    if dataset.num_samples == 0:
        raise DataError(
            f"{dataset.name}: expected samples to evaluate on, found none (data.test_fraction is 0): give --data.test_path"
        )
    return dataset


def _complete(data: DataConfig, num_classes: int) -> DataConfig:
    """Return the section with the format of the test file, if that is still to be told. Local."""
    if not data.format:
        check_file(data.test_path)
        name = guess_format(data.test_path)
        if name is None:
            raise DataError(f"{data.test_path}: neither its first bytes nor its name tell the format: give --data.format")
        data = replace(data, format=name)
    data = replace(data, num_classes=num_classes)
    check_config(replace(Config(), data=data))
    return data


def _format_text(run: Path, model: TrainedModel, dataset: Dataset, metrics: ClassificationMetrics) -> str:
    lines = [
        f"run        {run}, {model.checkpoint.name}",
        f"data       {dataset.name}, {dataset.num_samples} samples",
        f"accuracy   {metrics.accuracy:.4f}",
        f"precision  {metrics.precision:.4f} (macro average, as are the next)",
        f"recall     {metrics.recall:.4f}",
        f"f1         {metrics.f1:.4f}",
        "",
        _row("class", ["precision", "recall", "f1", "samples"]),
    ]
    for number, found in enumerate(metrics.per_class):
        values = [f"{found.precision:.4f}", f"{found.recall:.4f}", f"{found.f1:.4f}", str(found.support)]
        lines.append(_row(str(number), values))
    return "\n".join(lines) + "\n"


def _row(name: str, values: Sequence[str]) -> str:
    return f"{name:<9}" + "".join(f"{value:>11}" for value in values)


def _format_json(run: Path, model: TrainedModel, dataset: Dataset, metrics: ClassificationMetrics) -> str:
    result = {
        "run": str(run),
        "checkpoint": model.checkpoint.name,
        "step": model.state.step,
        "epoch": model.state.epoch,
        "data": dataset.name,
        "num_samples": dataset.num_samples,
        **asdict(metrics),
    }
    return format_json(result) + "\n"
