"""What a task means for a run: its loss, its metrics, the labels it needs, and what a prediction is."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.config.schema import DataConfig, ModelConfig, TrainConfig
from lepton_mpi.data.loader import Preparation
from lepton_mpi.data.masking import Masking
from lepton_mpi.data.needs import DataNeeds
from lepton_mpi.data.negatives import NegativeItems
from lepton_mpi.errors import ConfigError
from lepton_mpi.models.family import ModelSpec
from lepton_mpi.models.registry import choose_family_task
from lepton_mpi.monitor.binary_metrics import BinarySums
from lepton_mpi.monitor.metrics import (
    ClassificationSums,
    LanguageModelSums,
    MetricSums,
    RegressionSums,
    SegmentationSums,
)
from lepton_mpi.monitor.ranking_metrics import RankingSums
from lepton_mpi.nn.divided_loss import DividedSoftmaxCrossEntropy
from lepton_mpi.nn.loss import Loss
from lepton_mpi.nn.losses import BayesianPersonalisedRanking, MeanSquaredError, SigmoidCrossEntropy, SoftmaxCrossEntropy
from lepton_mpi.nn.place import Alone, Place
from lepton_mpi.ops.softplus import logistic

_CLASS_TASKS = ("classification", "segmentation", "language_model", "masked_language_model")


def data_needs(config: ModelConfig) -> DataNeeds:
    """Return what a model needs of the data, before it is declared. Local.

    Raises:
        ConfigError: there is no such family, or it cannot do the task.
    """
    family, task = choose_family_task(config)
    return DataNeeds(task.labels, config.context or family.context)


def make_loss(model: ModelSpec, config: TrainConfig, place: Place | None = None) -> Loss:
    """Return the loss of a model's task. Local.

    Args:
        model: the model.
        config: section [train].
        place: where the loss is found; None: where nothing is divided. Classes that are divided stay so.

    Raises:
        ConfigError: class weights or label smoothing where there are no classes, or weights of another number of classes.
    """
    name = model.task.name
    if name in _CLASS_TASKS:
        weights = config.class_weights
        num_classes = model.output_shape[-1]
        if weights and (len(weights) != num_classes or not any(weights)):
            raise ConfigError(
                f"train.class_weights: expected {num_classes} weights, one a class and one of them above 0, got "
                f"{len(weights)}: {list(weights)}"
            )
        loss, place = SoftmaxCrossEntropy(weights, config.label_smoothing), place or Alone()
        divided = (place.shards > 1 or place.chunks) and model.layers[-1].can_divide_output
        return DividedSoftmaxCrossEntropy(loss, num_classes, place) if divided else loss
    if config.class_weights or config.label_smoothing:
        raise ConfigError(f"train.class_weights and train.label_smoothing: the task {name} has no classes; leave them out")
    if name == "ranking":
        return BayesianPersonalisedRanking()
    return MeanSquaredError() if name == "regression" else SigmoidCrossEntropy()


def make_metrics(model: ModelSpec) -> MetricSums:
    """Return the sums that the metrics of a model's task are made of. Local."""
    name = model.task.name
    if name == "classification":
        return ClassificationSums(model.data.num_classes)
    if name == "segmentation":
        return SegmentationSums(model.data.num_classes)
    if name in ("language_model", "masked_language_model"):
        return LanguageModelSums()
    if name == "regression":
        return RegressionSums(model.output_shape[-1])
    return RankingSums() if name == "ranking" else BinarySums(math.prod(model.output_shape))


def predicts_classes(model: ModelSpec) -> bool:
    """Return whether predictions are probabilities of classes, or of tokens. Local."""
    return model.task.name in _CLASS_TASKS


def labels_a_sample(model: ModelSpec) -> int:
    """Return how many labels of weight 1 a sample usually has; a mean is taken over all of them. Local."""
    if model.task.name in _CLASS_TASKS:
        return int(np.prod(model.output_shape[:-1], dtype=np.int64))
    return 1 if model.task.name == "ranking" else int(np.prod(model.output_shape, dtype=np.int64))


def make_preparation(
    model: ModelSpec, config: DataConfig, purpose: Literal["train", "evaluate", "predict"] = "train"
) -> Preparation | None:
    """Return what turns samples into questions and answers, where the data do not hold both. Local.

    Args:
        model: the model.
        config: section [data].
        purpose: a ranking is judged on more items than it is trained on; for predictions tokens are taken as they are.

    Raises:
        ConfigError: the mask token is none of the vocabulary.
    """
    if model.task.name == "ranking":
        return NegativeItems(model.data.id_counts[1], config.ranking_candidates if purpose == "evaluate" else 1)
    if model.task.name != "masked_language_model" or purpose == "predict":
        return None
    vocabulary = model.output_shape[-1]
    mask = config.mask_token if config.mask_token >= 0 else vocabulary - 1
    if mask >= vocabulary:
        raise ConfigError(f"data.mask_token: expected a token below the vocabulary of {vocabulary}, got {mask}")
    return Masking(config.mask_rate, mask, vocabulary, model.pad_id)


def to_outputs(model: ModelSpec, predictions: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return outputs that `to_predictions` makes such predictions of, so that metrics can take them. Local."""
    tiny = np.finfo(np.float32).tiny  # a probability of 0 has no logarithm
    if model.task.name in _CLASS_TASKS:
        return np.log(np.maximum(predictions, tiny))
    if model.task.name == "binary":
        return np.log(np.maximum(predictions, tiny)) - np.log(np.maximum(1 - predictions, tiny))
    return predictions


def to_predictions(model: ModelSpec, outputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return probabilities for outputs where the task has any, else the outputs themselves. Local.

    Args:
        model: the model.
        outputs: [B, ..., C], what the last layer made.
    """
    if model.task.name in _CLASS_TASKS:
        if not outputs.size:
            return outputs
        exponentials = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
        probabilities: NDArray[np.float32] = exponentials / exponentials.sum(axis=-1, keepdims=True)
        return probabilities
    if model.task.name == "binary":
        return logistic(outputs)
    return outputs
