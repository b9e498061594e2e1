"""How well a model does its task: sums over samples, which add over batches and ranks, and the metrics that follow from them.

Losses here are plain: no smoothing, no class weights. Counts are integers below 2^53, hence exact in float64.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.errors import ConfigError
from lepton_mpi.monitor.classification import ClassificationMetrics, classification_metrics, confusion_matrix
from lepton_mpi.nn.losses import as_shaped
from lepton_mpi.ops.bpr import bpr
from lepton_mpi.ops.sigmoid_cross_entropy import sigmoid_cross_entropy
from lepton_mpi.ops.softmax_cross_entropy import IGNORED_LABEL, softmax_cross_entropy

Totals: TypeAlias = NDArray[np.float64]

_LOWER_IS_BETTER: Final = frozenset({"loss", "perplexity", "rmse", "mae"})


@final
@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        values: metrics by name, in the order of the task; the first is the main one. NaN where there was nothing to count.
        classification: the table of all classes, for classification alone.
    """

    values: dict[str, float]
    classification: ClassificationMetrics | None = None

    @property
    def main(self) -> tuple[str, float]:
        """Name, as people read it, and value of the main metric."""
        name, value = next(iter(self.values.items()))
        return name.replace("_", " "), value

    def to_dict(self) -> dict[str, Any]:
        """Return metrics by name, and the list `per_class` for classification. Local."""
        if self.classification is None:
            return dict(self.values)
        return self.values | {"per_class": [asdict(found) for found in self.classification.per_class]}


class MetricSums(ABC):
    """The sums of one task on the samples added so far. Local; whoever has several ranks adds their `totals`.

    Attributes:
        names: metrics of the task, the main one first.
        totals: float64 [n]; sums over disjoint samples add element by element.
    """

    names: ClassVar[tuple[str, ...]]

    def __init__(self, num_totals: int) -> None:
        self.totals: Totals = np.zeros(num_totals)

    @abstractmethod
    def add(self, output: NDArray[np.floating], target: NDArray[np.generic] | None) -> None:
        """Count samples. Local.

        Args:
            output: [B, ..., C] of the model, in host memory; B may be 0.
            target: labels, as the loss of the task has them.

        Raises:
            DataError: a label is out of range.
            ValueError: the shapes or dtypes do not fit.
        """

    @abstractmethod
    def evaluation(self, totals: Totals) -> Evaluation:
        """Return the metrics that follow from the sums of all ranks. Local.

        Args:
            totals: `totals`, or their sum over ranks.
        """

    @classmethod
    def higher_is_better(cls, name: str) -> bool:
        """Return whether a metric of the task improves by growing. Local.

        Raises:
            ConfigError: the task has no such metric.
        """
        if name not in cls.names:
            raise ConfigError(f"unknown metric {name!r}: expected one of {', '.join(cls.names)}")
        return name not in _LOWER_IS_BETTER


class _ConfusionSums(MetricSums):
    """Confusion matrix and cross entropy; labels of -100 are left out."""

    def __init__(self, num_classes: int) -> None:
        """Begin with nothing counted. num_classes: C."""
        super().__init__(num_classes * num_classes + 1)
        self._num_classes = num_classes

    def add(self, output: NDArray[np.floating], target: NDArray[np.generic] | None) -> None:
        labels = _given(target)
        loss = softmax_cross_entropy(output, labels).loss
        counts = labels != IGNORED_LABEL
        predictions = output.argmax(axis=-1)[counts]
        self.totals[:-1] += confusion_matrix(labels[counts], predictions, self._num_classes).reshape(-1)
        self.totals[-1] += loss

    def _confusion(self, totals: Totals) -> NDArray[np.int64]:
        return totals[:-1].astype(np.int64).reshape(self._num_classes, self._num_classes)


@final
class ClassificationSums(_ConfusionSums):
    """One class a sample: output [B, C], target int64 [B]. Macro averages as in `classification_metrics`."""

    names = ("accuracy", "precision", "recall", "f1", "loss")

    def evaluation(self, totals: Totals) -> Evaluation:
        confusion = self._confusion(totals)
        found = classification_metrics(confusion)
        loss = _mean(totals[-1], confusion.sum())
        values = (found.accuracy, found.precision, found.recall, found.f1, loss)
        return Evaluation(dict(zip(self.names, values, strict=True)), found)


@final
class SegmentationSums(_ConfusionSums):
    """One class a pixel: output [B, H, W, C], target int64 [B, H, W].

    The intersection over union of a class is TP / (TP + FP + FN), averaged over the classes that occur among labels or
    predictions (Everingham et al. 2010, "The PASCAL visual object classes challenge", section 4.2, with sums over all images).
    """

    names = ("pixel_accuracy", "mean_iou", "loss")

    def evaluation(self, totals: Totals) -> Evaluation:
        confusion = self._confusion(totals)
        right, num_pixels = np.diagonal(confusion), confusion.sum()
        union = confusion.sum(axis=0) + confusion.sum(axis=1) - right
        iou = right[union > 0] / union[union > 0]
        values = (_mean(right.sum(), num_pixels), _mean(iou.sum(), iou.size), _mean(totals[-1], num_pixels))
        return Evaluation(dict(zip(self.names, values, strict=True)))


@final
class LanguageModelSums(MetricSums):
    """One token at each position: output [B, T, C], target int64 [B, T]; labels of -100 are left out.

    Perplexity is e^loss, infinite where that overflows.
    """

    names = ("loss", "perplexity", "token_accuracy")

    def __init__(self) -> None:
        super().__init__(3)

    def add(self, output: NDArray[np.floating], target: NDArray[np.generic] | None) -> None:
        sums = softmax_cross_entropy(output, _given(target))
        self.totals += (sums.loss, sums.num_counted, sums.num_correct)

    def evaluation(self, totals: Totals) -> Evaluation:
        loss, num_tokens, num_correct = totals
        mean = _mean(loss, num_tokens)
        perplexity = math.inf if mean > math.log(np.finfo(np.float64).max) else math.exp(mean)
        return Evaluation(dict(zip(self.names, (mean, perplexity, _mean(num_correct, num_tokens)), strict=True)))


@final
class RegressionSums(MetricSums):
    """Real numbers: output [B, D], target float32 [B, D], or [B] where D is 1.

    rmse and mae are over all values. r2 is the plain average over the D columns of 1 - (squared error) / (squared
    distance of the targets from their mean), as scikit-learn's `r2_score`; of a column whose targets are all equal it is 1
    without an error and 0 with one.
    """

    names = ("rmse", "mae", "r2")

    # Below this part of the squares about the pivot, what remains of the squares about the mean is rounding. So a column
    # counts as constant where its standard deviation is less than a millionth of its distance from the pivot.
    _ROUNDING: Final = 1e-12

    def __init__(self, num_outputs: int, pivot: float | NDArray[np.floating] = 0.0) -> None:
        """Begin with nothing counted.

        Args:
            num_outputs: D.
            pivot: number, or [D], near the mean of the targets, from which they are measured; the same on all ranks.
        """
        super().__init__(5 * num_outputs)
        self._num_outputs = num_outputs
        self._pivot = np.broadcast_to(np.asarray(pivot, np.float64), num_outputs)

    def add(self, output: NDArray[np.floating], target: NDArray[np.generic] | None) -> None:
        y = as_shaped(_given(target), output).astype(np.float64)
        errors = output - y
        y -= self._pivot
        rows = self.totals.reshape(5, self._num_outputs)
        rows[0] += len(y)
        for row, terms in zip(rows[1:], (y, y * y, errors * errors, np.abs(errors)), strict=True):
            row += terms.sum(axis=0)

    def evaluation(self, totals: Totals) -> Evaluation:
        counts, sums, squares, errors, distances = totals.reshape(5, self._num_outputs)
        num_values = counts.sum()
        if num_values == 0:
            return Evaluation(dict.fromkeys(self.names, math.nan))
        spread = squares - sums * sums / counts
        is_constant = spread <= self._ROUNDING * squares
        of_constant = np.where(errors == 0, 1.0, np.where(np.isnan(errors), np.nan, 0.0))
        r2 = np.where(is_constant, of_constant, 1 - errors / np.where(is_constant, 1.0, spread))
        values = (math.sqrt(errors.sum() / num_values), float(distances.sum() / num_values), float(r2.mean()))
        return Evaluation(dict(zip(self.names, values, strict=True)))


@final
class BinarySums(MetricSums):
    """Yes-or-no answers: output [B, D], target float32 [B, D] in [0, 1], or [B] where D is 1.

    All D answers count alike. An answer is yes where output > 0, a label where target > 0.5; precision, recall and f1
    are of yes, 0 where their denominator is.
    """

    names = ("accuracy", "precision", "recall", "f1", "loss")

    def __init__(self) -> None:
        super().__init__(5)

    def add(self, output: NDArray[np.floating], target: NDArray[np.generic] | None) -> None:
        labels = as_shaped(_given(target), output)
        answers, truths = output > 0, labels > 0.5
        counts = [float((a & t).sum()) for t in (~truths, truths) for a in (~answers, answers)]
        self.totals += (*counts, sigmoid_cross_entropy(output, labels))

    def evaluation(self, totals: Totals) -> Evaluation:
        confusion = totals[:-1].astype(np.int64).reshape(2, 2)
        found = classification_metrics(confusion)
        yes = found.per_class[1]
        values = (found.accuracy, yes.precision, yes.recall, yes.f1, _mean(totals[-1], confusion.sum()))
        return Evaluation(dict(zip(self.names, values, strict=True)))


@final
class RankingPairSums(MetricSums):
    """Pairs of a preferred item and another: output [B, 2]; the target is not looked at. Equal scores are wrong."""

    names = ("pair_accuracy", "loss")

    def __init__(self) -> None:
        super().__init__(3)

    def add(self, output: NDArray[np.floating], target: NDArray[np.generic] | None) -> None:
        del target
        self.totals += (len(output), float((output[:, 0] > output[:, 1]).sum()), bpr(output))

    def evaluation(self, totals: Totals) -> Evaluation:
        num_pairs, num_right, loss = totals
        return Evaluation(dict(zip(self.names, (_mean(num_right, num_pairs), _mean(loss, num_pairs)), strict=True)))


def _given(target: NDArray[np.generic] | None) -> NDArray[np.generic]:
    if target is None:
        raise ValueError("target: expected labels, received None")
    return target


def _mean(total: float | np.floating | np.integer, count: float | np.floating | np.integer) -> float:
    """Return the mean, NaN of nothing."""
    return float(total) / float(count) if count else math.nan
