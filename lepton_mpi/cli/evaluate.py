"""`python -m lepton_mpi evaluate`: how well a trained model, or an ensemble of several, does on a test set."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lepton_mpi.cli.arguments import EvaluateArguments
from lepton_mpi.cli.ensemble import evaluate_together, restore_models
from lepton_mpi.cli.test_set import open_own_test_set
from lepton_mpi.cli.trained_model import TrainedModel
from lepton_mpi.comm.contract import collective
from lepton_mpi.data.dataset import Dataset
from lepton_mpi.errors import ConfigError
from lepton_mpi.monitor.json_text import format_json
from lepton_mpi.monitor.metrics import Evaluation
from lepton_mpi.runtime.logs import start_logging
from lepton_mpi.runtime.mpi import MPI


@collective("comm")
def run_evaluate(comm: MPI.Intracomm, arguments: EvaluateArguments) -> None:
    """Evaluate as asked and print the result on rank 0.

    Collective over comm.

    Raises:
        ConfigError: a confusion matrix was asked for, but the task has no classes to confuse.
        LeptonError: model and data do not fit, or one of them cannot be read; on all ranks alike.
    """
    with start_logging(comm.Get_rank(), comm.Get_size(), None, "WARNING"):
        models = restore_models(comm, arguments)
        model = models[0]
        dataset = open_own_test_set(comm, arguments.config, model.network.model)
        metrics = evaluate_together(models, dataset)
        for other in models:
            other.network.grid.free()
        if arguments.confusion and metrics.confusion is None:
            raise ConfigError(f"--confusion: the task {model.network.model.task.name} has no confusion matrix: leave it out")
    if not arguments.confusion:
        metrics = replace(metrics, confusion=None)
    if comm.Get_rank() == 0:
        format_result = _format_json if arguments.json else _format_text
        sys.stdout.write(format_result([arguments.run, *arguments.ensemble], models, dataset, metrics))


def _format_text(runs: Sequence[Path], models: Sequence[TrainedModel], dataset: Dataset, found: Evaluation) -> str:
    lines = [f"run        {run}, {model.checkpoint.name}" for run, model in zip(runs, models, strict=True)]
    lines.append(f"data       {dataset.name}, {dataset.num_samples} samples")
    for name, value in found.values.items():
        note = " (macro average, as are the next two)" if name == "precision" and found.classification else ""
        lines.append(f"{name.replace('_', ' '):<10} {value:.4f}{note}")
    if found.classification is not None:
        lines += ["", _row("class", ["precision", "recall", "f1", "samples"])]
        for number, of_class in enumerate(found.classification.per_class):
            values = [f"{of_class.precision:.4f}", f"{of_class.recall:.4f}", f"{of_class.f1:.4f}", str(of_class.support)]
            lines.append(_row(str(number), values))
    if found.confusion is not None:
        width = max(len(str(found.confusion.max(initial=0))), 4)
        rows = [(number, row.tolist()) for number, row in enumerate(found.confusion)]
        lines += ["", "taken for " + " ".join(f"{number:>{width}}" for number, _ in rows)]
        lines += [f"class {number:<4}" + " ".join(f"{count:>{width}}" for count in row) for number, row in rows]
    return "\n".join(lines) + "\n"


def _row(name: str, values: Sequence[str]) -> str:
    return f"{name:<9}" + "".join(f"{value:>11}" for value in values)


def _format_json(runs: Sequence[Path], models: Sequence[TrainedModel], dataset: Dataset, found: Evaluation) -> str:
    model = models[0]
    result = {
        "run": str(runs[0]),
        **({"ensemble": [str(run) for run in runs[1:]]} if len(runs) > 1 else {}),
        "checkpoint": model.checkpoint.name,
        "step": model.state.step,
        "epoch": model.state.epoch,
        "data": dataset.name,
        "num_samples": dataset.num_samples,
        **found.to_dict(),
        **({"confusion": found.confusion} if found.confusion is not None else {}),
    }
    return format_json(result) + "\n"
