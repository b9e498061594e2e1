"""Accuracy, precision, recall and F1 from a confusion matrix.

Definitions: Manning, Raghavan, Schuetze, "Introduction to Information Retrieval", chapters 8.3
and 13.6; the edge cases are those of scikit-learn's `precision_recall_fscore_support` with
`average="macro", zero_division=0`: a quotient with a zero denominator is 0, and the averages
run over the classes that occur among the labels or the predictions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.errors import DataError


@final
@dataclass(frozen=True)
class ClassMetrics:
    """How well one class was told from the others."""

    precision: float
    recall: float
    f1: float
    support: int  # samples with this label


@final
@dataclass(frozen=True)
class ClassificationMetrics:
    """How well all classes were told apart; precision, recall and f1 are macro averages."""

    accuracy: float
    precision: float
    recall: float
    f1: float
    per_class: tuple[ClassMetrics, ...]  # one for every class 0 .. C-1


def confusion_matrix(labels: NDArray[np.integer], predictions: NDArray[np.integer], num_classes: int) -> NDArray[np.int64]:
    """Count how often each class was predicted as each class.

    Local. Counts are integers, so matrices summed over ranks are equal on every grid.

    Args:
        labels: true classes, integers (N,) in 0 .. num_classes-1.
        predictions: predicted classes, likewise.
        num_classes: number of classes C.

    Returns:
        int64 (C, C), row true, column predicted; a new array.

    Raises:
        DataError: the two differ in shape or have more than one dim, or a class is out of range.
    """
    if labels.shape != predictions.shape or labels.ndim != 1:
        raise DataError(f"expected labels and predictions of one shape (N,), got {labels.shape} and {predictions.shape}")
    for what, classes in (("label", labels), ("prediction", predictions)):
        outside = (classes < 0) | (classes >= num_classes)
        if outside.any():
            where = int(np.argmax(outside))
            raise DataError(f"expected classes from 0 to {num_classes - 1}, got {what} {int(classes[where])} for sample {where}")
    cells = labels.astype(np.int64) * num_classes + predictions.astype(np.int64)
    return np.bincount(cells, minlength=num_classes * num_classes).astype(np.int64, copy=False).reshape(num_classes, num_classes)


def classification_metrics(confusion: NDArray[np.int64]) -> ClassificationMetrics:
    """Derive the metrics of a confusion matrix.

    Local. A class that occurs neither among the labels nor among the predictions has zeros
    everywhere and is left out of the averages. Without any sample all metrics are 0.

    Args:
        confusion: int64 (C, C), row true, column predicted, counts of at least 0.

    Raises:
        DataError: not a square matrix.
    """
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise DataError(f"expected a square confusion matrix (C, C), got shape {confusion.shape}")
    correct = np.diagonal(confusion)
    support, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    precision = _quotient(correct, predicted)
    recall = _quotient(correct, support)
    f1 = _quotient(2 * correct, support + predicted)
    occurs = support + predicted > 0
    return ClassificationMetrics(
        accuracy=float(_quotient(correct.sum(), support.sum())),
        precision=_mean(precision[occurs]),
        recall=_mean(recall[occurs]),
        f1=_mean(f1[occurs]),
        per_class=tuple(
            ClassMetrics(float(p), float(r), float(f), int(n)) for p, r, f, n in zip(precision, recall, f1, support, strict=True)
        ),
    )


def _quotient(part: NDArray[np.int64] | np.int64, whole: NDArray[np.int64] | np.int64) -> NDArray[np.float64]:
    """Return part / whole, 0 where whole is 0."""
    return np.asarray(part / np.maximum(whole, 1), np.float64)


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else 0.0
