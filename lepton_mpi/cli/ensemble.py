"""Several trained models as one: their predictions averaged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.cli.arguments import EvaluateArguments, PredictArguments, read_run_config
from lepton_mpi.cli.trained_model import TrainedModel, restore_model
from lepton_mpi.comm.agreement import do_on_root
from lepton_mpi.comm.contract import collective
from lepton_mpi.data.dataset import Dataset
from lepton_mpi.data.loader import Loader
from lepton_mpi.data.sampler import SequentialSampler
from lepton_mpi.errors import ConfigError
from lepton_mpi.models.family import ModelSpec
from lepton_mpi.monitor.metrics import Evaluation
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.train.inference import evaluate, predict
from lepton_mpi.train.objective import make_metrics, to_outputs


@collective("comm")
def restore_models(comm: MPI.Intracomm, arguments: EvaluateArguments | PredictArguments) -> list[TrainedModel]:
    """Restore the run that a command names and the others of its ensemble, each with its own configuration.

    Collective over comm.

    Raises:
        ConfigError: a run does another task, or takes other data.
        CheckpointError: a run has no whole checkpoint.
    """
    models = [restore_model(comm, arguments.config, arguments.run)]
    for run in arguments.ensemble:
        config = do_on_root(comm, partial(read_run_config, run))
        config = replace(config, grid=arguments.config.grid, run=arguments.config.run)
        models.append(restore_model(comm, config, run))
        _require_alike(models[0].network.model, models[-1].network.model, run)
    return models


def _require_alike(first: ModelSpec, other: ModelSpec, run: Path) -> None:
    facts = [(m.task.name, m.data.input_shape, m.output_shape) for m in (first, other)]
    if facts[0] != facts[1]:
        task, inputs, outputs = zip(*facts, strict=True)
        raise ConfigError(
            f"--ensemble {run}: expected a model for {task[0]} of samples {inputs[0]} with outputs {outputs[0]}, found one for "
            f"{task[1]} of {inputs[1]} with {outputs[1]}: give runs on the same data"
        )


@collective("grid.world")
def predict_together(
    models: Sequence[TrainedModel], dataset: Dataset, *, evaluating: bool = False
) -> Iterator[NDArray[np.float32]]:
    """Yield the mean of the models' predictions, a batch at a time, as `predict` does for one.

    Collective over grid.world.
    """
    size = _common_batch(models, evaluating)
    predictions = [predict(model.network, model.loader(dataset, size, evaluating=evaluating)) for model in models]
    if len(models) == 1:
        yield from predictions[0]
        return
    for rows in zip(*predictions, strict=True):
        yield np.asarray(np.mean(rows, axis=0, dtype=np.float64), np.float32)


@collective("grid.world")
def evaluate_together(models: Sequence[TrainedModel], dataset: Dataset) -> Evaluation:
    """Return how well the mean of the models' predictions does.

    Collective over grid.world. For one model this is `evaluate`; the metrics of several are counted on rank 0.
    """
    model = models[0].network.model
    if len(models) == 1:
        return evaluate(models[0].network, models[0].loader(dataset, evaluating=True))
    size, grid = _common_batch(models, evaluating=True), models[0].network.grid
    metrics, position = make_metrics(model), 0
    answers = None
    if grid.rank == 0:
        order = SequentialSampler(dataset.num_samples)
        answers = Loader(
            dataset,
            order,
            models[0].normalisation,
            global_batch=size,
            input_kind=model.input_kind,
            preparation=models[0].judged,
            want_inputs=False,
        )
    for rows in predict_together(models, dataset, evaluating=True):
        if answers is not None:
            labels = np.concatenate(answers.batch(0, position).labels)
            metrics.add(to_outputs(model, rows), labels)
            position += len(rows)
    found: Evaluation = grid.world.bcast(metrics.evaluation(metrics.totals, metrics.rows), root=0)
    return found


def _common_batch(models: Sequence[TrainedModel], evaluating: bool) -> int:
    return min(model.batch_size(evaluating=evaluating) for model in models)
