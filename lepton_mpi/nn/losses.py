"""The losses of the tasks. Dims: B batch, C classes, D values a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np

from lepton_mpi.errors import ConfigError
from lepton_mpi.nn.loss import Loss, LossResult
from lepton_mpi.ops.array_module import Array, array_module
from lepton_mpi.ops.bpr import bpr, bpr_backward
from lepton_mpi.ops.sigmoid_cross_entropy import sigmoid_cross_entropy, sigmoid_cross_entropy_backward
from lepton_mpi.ops.soft_cross_entropy import soft_cross_entropy_with_gradient
from lepton_mpi.ops.softmax_cross_entropy import softmax_cross_entropy_with_gradient
from lepton_mpi.ops.squared_error import squared_error, squared_error_backward


@final
@dataclass(frozen=True)
class SoftmaxCrossEntropy(Loss):
    """Cross entropy of one class at each position: output [B, ..., C], target int64 [B, ...].

    Labels of -100 count nothing. The definitions are those of PyTorch's `nn.CrossEntropyLoss`. Instead of a class a label may
    be float32 [B, ..., C], the share of each class, as mixup makes them; see `soft_cross_entropy_with_gradient`.

    Attributes:
        class_weights: C numbers of at least 0, or none for ones.
        label_smoothing: share of the target spread over all classes, in [0, 1).

    Raises:
        ConfigError: a weight or the smoothing is out of range.
    """

    class_weights: tuple[float, ...] = ()
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label smoothing: expected a number in [0, 1), got {self.label_smoothing}")
        for c, weight in enumerate(self.class_weights):
            if not 0 <= weight < float("inf"):
                raise ConfigError(f"class weights: expected finite numbers of at least 0, got {weight} for class {c}")

    def __call__(self, output: Any, target: Any, factor: float) -> LossResult:
        weights = array_module(output).asarray(self.class_weights, output.dtype) if self.class_weights else None
        cross_entropy = soft_cross_entropy_with_gradient if target.dtype.kind == "f" else softmax_cross_entropy_with_gradient
        sums, gradient = cross_entropy(output, target, factor, weights, self.label_smoothing)
        return LossResult(sums.loss, sums.weight, gradient, sums.num_correct, sums.num_counted)


@final
@dataclass(frozen=True)
class SigmoidCrossEntropy(Loss):
    """Cross entropy of yes-or-no answers: output [B, D], target float32 [B, D] in [0, 1], or [B] where D is 1.

    Every answer weighs 1; it is right where output > 0 and target > 0.5 agree.
    """

    def __call__(self, output: Any, target: Any, factor: float) -> LossResult:
        target = as_shaped(target, output)
        gradient = sigmoid_cross_entropy_backward(output, target, factor)
        num_correct = int(((output > 0) == (target > 0.5))[~array_module(output).isnan(output)].sum())
        return LossResult(sigmoid_cross_entropy(output, target), float(output.size), gradient, num_correct, output.size)


@final
@dataclass(frozen=True)
class MeanSquaredError(Loss):
    """Squared error: output [B, ..., D], target float32 of that shape, or without the last dim where D is 1.

    Every value weighs 1; none is right or wrong.
    """

    def __call__(self, output: Any, target: Any, factor: float) -> LossResult:
        target = as_shaped(target, output)
        gradient = squared_error_backward(output, target, factor)
        return LossResult(squared_error(output, target), float(output.size), gradient)


@final
@dataclass(frozen=True)
class BayesianPersonalisedRanking(Loss):
    """-log sigmoid(preferred - other) of pairs: output [B, 2], scores of the preferred item and of the other one.

    There are no labels: the target is not looked at. A pair is right where the preferred item scores higher.
    """

    def __call__(self, output: Any, target: Any, factor: float) -> LossResult:
        del target
        gradient = bpr_backward(output, factor)
        num_pairs = len(output)
        num_correct = int((output[:, 0] > output[:, 1]).sum())
        return LossResult(bpr(output), float(num_pairs), gradient, num_correct, num_pairs)


def as_shaped(target: Array, output: Array) -> Array:
    """Return the values of a target in the shape of an output. Local.

    Args:
        target: of the output's shape, or without its last dim where that has length 1.
        output: [B, ..., D].

    Raises:
        ValueError: another shape.
    """
    if target.shape == output.shape:
        return target
    if target.shape == output.shape[:-1] and output.shape[-1] == 1:
        return target[..., np.newaxis]
    raise ValueError(f"target: expected shape {tuple(output.shape)} as the output, received {tuple(target.shape)}")
