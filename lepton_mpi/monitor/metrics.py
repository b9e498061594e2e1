"""How well a model does its task: sums over samples, which add over batches and ranks, and the metrics that follow from them.

What is no function of sums, such as the area under a curve, needs a row of numbers of every sample as well; whoever has several
ranks brings them together.

Losses here are plain: no smoothing, no class weights. Counts are integers below 2^53, hence exact in float64.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.errors import ConfigError
from lepton_mpi.monitor.classification import ClassificationMetrics, classification_metrics, confusion_matrix
from lepton_mpi.nn.losses import as_shaped
from lepton_mpi.ops.softmax_cross_entropy import IGNORED_LABEL, softmax_cross_entropy

Totals: TypeAlias = NDArray[np.float64]
Rows: TypeAlias = NDArray[np.float32]

_NUM_BEST: Final = 5  # answers that top5_accuracy looks at

_LOWER_IS_BETTER: Final = frozenset({"loss", "perplexity", "rmse", "mae"})


@final
@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        values: metrics by name, in the order of the task; the first is the main one, which is shown. NaN where there was nothing
            to count.
        classification: the table of all classes, for classification alone.
        confusion: int64 [C, C], how often each class (row) was taken for each (column), where there are classes; not compared.
    """

    values: dict[str, float]
    classification: ClassificationMetrics | None = None
    confusion: NDArray[np.int64] | None = field(default=None, compare=False, repr=False)

    @property
    def main(self) -> tuple[str, float]:
        """Name, as people read it, and value of the main metric."""
        name, value = next(iter(self.values.items()))
        return name.replace("_", " "), value

    def led_by(self, name: str) -> Evaluation:
        """Return the same with another of its metrics as the main one. Local."""
        return replace(self, values={name: self.values[name], **self.values})

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
        row_size: numbers that are kept of every sample; 0: the totals are all.
        real_totals: which totals are sums of real numbers, whose bits depend on the order of additions; the others are counts.
    """

    names: tuple[str, ...]
    real_totals: slice = slice(None)

    def __init__(self, num_totals: int, row_size: int = 0) -> None:
        self.totals: Totals = np.zeros(num_totals)
        self.row_size = row_size
        self._rows: list[Rows] = []

    @property
    def rows(self) -> Rows:
        """What is kept of the samples added so far, in their order, float32 [samples, row_size]."""
        return np.concatenate([np.empty((0, self.row_size), np.float32), *self._rows])

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
    def evaluation(self, totals: Totals, rows: Rows) -> Evaluation:
        """Return the metrics that follow from the sums of all ranks. Local.

        Args:
            totals: `totals`, or their sum over ranks.
            rows: `rows`, or those of all ranks in the order of the samples.
        """

    def choose(self, name: str) -> tuple[str, bool]:
        """Return a metric to go by, the main one where the name is empty, and whether it improves by growing. Local.

        Raises:
            ConfigError: the task has no such metric.
        """
        name = name or self.names[0]
        return name, self.higher_is_better(name)

    def higher_is_better(self, name: str) -> bool:
        """Return whether a metric of the task improves by growing. Local.

        Raises:
            ConfigError: the task has no such metric.
        """
        if name not in self.names:
            raise ConfigError(f"unknown metric {name!r}: expected one of {', '.join(self.names)}")
        return name not in _LOWER_IS_BETTER


class _ConfusionSums(MetricSums):
    """Confusion matrix and cross entropy; labels of -100 are left out."""

    def __init__(self, num_classes: int, num_more: int = 0) -> None:
        """Begin with nothing counted. num_classes: C; num_more: totals of a subclass, which come last."""
        super().__init__(num_classes * num_classes + 1 + num_more)
        self._num_classes = num_classes
        self.real_totals = slice(num_classes * num_classes, num_classes * num_classes + 1)

    def add(self, output: NDArray[np.floating], target: NDArray[np.generic] | None) -> None:
        labels, num_cells = given(target), self._num_classes**2
        loss = softmax_cross_entropy(output, labels).loss
        counts = labels != IGNORED_LABEL
        predictions = output.argmax(axis=-1)[counts]
        self.totals[:num_cells] += confusion_matrix(labels[counts], predictions, self._num_classes).reshape(-1)
        self.totals[num_cells] += loss

    def _confusion(self, totals: Totals) -> NDArray[np.int64]:
        return totals[: self._num_classes**2].astype(np.int64).reshape(self._num_classes, self._num_classes)

    def _mean_loss(self, totals: Totals, num_labels: int | np.integer) -> float:
        return mean(totals[self._num_classes**2], num_labels)


@final
class ClassificationSums(_ConfusionSums):
    """One class a sample: output [B, C], target int64 [B]. Macro averages as in `classification_metrics`.

    top5_accuracy, where there are more than five classes, is the share of the labels that are among the five largest outputs;
    of equal outputs those of the first classes are, as for the largest one.
    """

    def __init__(self, num_classes: int) -> None:
        """Begin with nothing counted. num_classes: C."""
        super().__init__(num_classes, num_more=1)
        of_many = ("top5_accuracy",) if num_classes > _NUM_BEST else ()
        self.names = ("accuracy", *of_many, "precision", "recall", "f1", "loss")

    def add(self, output: NDArray[np.floating], target: NDArray[np.generic] | None) -> None:
        super().add(output, target)
        if "top5_accuracy" in self.names:
            counts = given(target) != IGNORED_LABEL
            self.totals[-1] += _count_among_best(output[counts], given(target)[counts])

    def evaluation(self, totals: Totals, rows: Rows) -> Evaluation:
        del rows
        confusion = self._confusion(totals)
        found, num_labels = classification_metrics(confusion), confusion.sum()
        values = {"accuracy": found.accuracy, "precision": found.precision, "recall": found.recall, "f1": found.f1}
        values |= {"top5_accuracy": mean(totals[-1], num_labels), "loss": self._mean_loss(totals, num_labels)}
        return Evaluation({name: values[name] for name in self.names}, found, confusion)


@final
class SegmentationSums(_ConfusionSums):
    """One class a pixel: output [B, H, W, C], target int64 [B, H, W].

    The intersection over union of a class is TP / (TP + FP + FN), averaged over the classes that occur among labels or
    predictions (Everingham et al. 2010, "The PASCAL visual object classes challenge", section 4.2, with sums over all images).
    """

    names = ("pixel_accuracy", "mean_iou", "loss")

    def evaluation(self, totals: Totals, rows: Rows) -> Evaluation:
        del rows
        confusion = self._confusion(totals)
        right, num_pixels = np.diagonal(confusion), confusion.sum()
        union = confusion.sum(axis=0) + confusion.sum(axis=1) - right
        iou = right[union > 0] / union[union > 0]
        values = (mean(right.sum(), num_pixels), mean(iou.sum(), iou.size), self._mean_loss(totals, num_pixels))
        return Evaluation(dict(zip(self.names, values, strict=True)), confusion=confusion)


@final
class LanguageModelSums(MetricSums):
    """One token at each position: output [B, T, C], target int64 [B, T]; labels of -100 are left out.

    Perplexity is e^loss, infinite where that overflows.
    """

    names = ("loss", "perplexity", "token_accuracy")

    def __init__(self) -> None:
        super().__init__(3)

    def add(self, output: NDArray[np.floating], target: NDArray[np.generic] | None) -> None:
        sums = softmax_cross_entropy(output, given(target))
        self.totals += (sums.loss, sums.num_counted, sums.num_correct)

    def evaluation(self, totals: Totals, rows: Rows) -> Evaluation:
        del rows
        loss, num_tokens, num_correct = totals
        each = mean(loss, num_tokens)
        perplexity = math.inf if each > math.log(np.finfo(np.float64).max) else math.exp(each)
        return Evaluation(dict(zip(self.names, (each, perplexity, mean(num_correct, num_tokens)), strict=True)))


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
        y = as_shaped(given(target), output).astype(np.float64)
        errors = output - y
        y -= self._pivot
        rows = self.totals.reshape(5, self._num_outputs)
        rows[0] += len(y)
        for row, terms in zip(rows[1:], (y, y * y, errors * errors, np.abs(errors)), strict=True):
            row += terms.sum(axis=0)

    def evaluation(self, totals: Totals, rows: Rows) -> Evaluation:
        del rows
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


def _count_among_best(output: NDArray[np.floating], labels: NDArray[np.generic]) -> int:
    """Return how many labels are among the largest outputs of their rows; none of a row with NaN is."""
    classes = labels.astype(np.int64)[:, None]
    of_label = np.take_along_axis(output, classes, axis=1)
    before = (output > of_label) | ((output == of_label) & (np.arange(output.shape[1]) < classes))
    return int(((before.sum(axis=1) < _NUM_BEST) & ~np.isnan(output).any(axis=1)).sum())


def given(target: NDArray[np.generic] | None) -> NDArray[np.generic]:
    """Return labels that there are. Local.

    Raises:
        ValueError: there are none.
    """
    if target is None:
        raise ValueError("target: expected labels, received None")
    return target


def mean(total: float | np.floating | np.integer, count: float | np.floating | np.integer) -> float:
    """Return the mean, NaN of nothing. Local."""
    return float(total) / float(count) if count else math.nan
