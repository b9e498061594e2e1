"""Metrics against scikit-learn's results, and their edge cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_mpi.errors import DataError
from lepton_mpi.monitor.classification import ClassMetrics, classification_metrics, confusion_matrix

LABELS = np.array([0, 0, 0, 1, 1, 3, 3, 3, 3, 0])
PREDICTIONS = np.array([0, 1, 0, 1, 4, 3, 3, 1, 3, 0])


def test_the_matrix_counts_labels_by_row_and_predictions_by_column() -> None:
    matrix = confusion_matrix(LABELS, PREDICTIONS, 5)
    assert matrix.dtype == np.int64
    # scikit-learn 1.9, confusion_matrix(labels, predictions, labels=range(5))
    expected = [[3, 1, 0, 0, 0], [0, 1, 0, 0, 1], [0, 0, 0, 0, 0], [0, 1, 0, 3, 0], [0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(matrix, expected)


def test_small_integer_types_do_not_overflow() -> None:
    classes = np.array([150, 199], np.uint8)
    assert np.flatnonzero(confusion_matrix(classes, classes, 200)).tolist() == [150 * 200 + 150, 199 * 200 + 199]


def test_metrics_are_those_of_scikit_learn() -> None:
    metrics = classification_metrics(confusion_matrix(LABELS, PREDICTIONS, 5))
    # scikit-learn 1.9, accuracy_score and precision_recall_fscore_support(average="macro", zero_division=0):
    # class 2 occurs nowhere and is left out, class 4 is only predicted and counts with zeros.
    assert metrics.accuracy == 0.7
    assert (metrics.precision, metrics.recall, metrics.f1) == pytest.approx((0.5833333333333333, 0.5, 0.5285714285714286))
    # precision_recall_fscore_support(labels=range(5), zero_division=0)
    expected = [(1, 3 / 4, 6 / 7, 4), (1 / 3, 1 / 2, 2 / 5, 2), (0, 0, 0, 0), (1, 3 / 4, 6 / 7, 4), (0, 0, 0, 0)]
    for found, (precision, recall, f1, support) in zip(metrics.per_class, expected, strict=True):
        assert (found.precision, found.recall, found.f1) == pytest.approx((precision, recall, f1))
        assert found.support == support and type(found.support) is int


def test_perfect_predictions_score_one_and_all_wrong_ones_zero() -> None:
    perfect = classification_metrics(np.diag([3, 1, 2]))
    assert (perfect.accuracy, perfect.precision, perfect.recall, perfect.f1) == (1.0, 1.0, 1.0, 1.0)
    wrong = classification_metrics(np.array([[0, 2], [1, 0]]))
    assert (wrong.accuracy, wrong.precision, wrong.recall, wrong.f1) == (0.0, 0.0, 0.0, 0.0)


def test_without_samples_all_metrics_are_zero() -> None:
    empty = np.array([], np.int64)
    metrics = classification_metrics(confusion_matrix(empty, empty, 2))
    assert (metrics.accuracy, metrics.precision, metrics.recall, metrics.f1) == (0.0, 0.0, 0.0, 0.0)
    assert metrics.per_class == (ClassMetrics(0.0, 0.0, 0.0, 0),) * 2


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60))
def test_metrics_are_those_of_their_definitions(pairs: list[tuple[int, int]]) -> None:
    labels, predictions = np.array(pairs, np.uint8).T
    metrics = classification_metrics(confusion_matrix(labels, predictions, 5))
    classes = sorted(set(labels.tolist()) | set(predictions.tolist()))
    scores = []
    for k in classes:
        hits = sum(1 for y, p in pairs if y == p == k)
        predicted, support = sum(p == k for _, p in pairs), sum(y == k for y, _ in pairs)
        precision, recall = hits / predicted if predicted else 0.0, hits / support if support else 0.0
        scores.append((precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0))
        found = metrics.per_class[k]
        assert (found.precision, found.recall, found.f1) == pytest.approx(scores[-1]) and found.support == support
    macro = [math.fsum(column) / len(classes) for column in zip(*scores, strict=True)]
    assert (metrics.precision, metrics.recall, metrics.f1) == pytest.approx(tuple(macro))
    assert metrics.accuracy == sum(y == p for y, p in pairs) / len(pairs)


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([0, 1, 3], [0, 1, 2], r"classes from 0 to 2, got label 3 for sample 2"),
        ([0, 1], [0, -1], r"got prediction -1 for sample 1"),
        ([0, 1], [0], r"one shape \(N,\), got \(2,\) and \(1,\)"),
        ([[0]], [[0]], r"one shape \(N,\), got \(1, 1\)"),
    ],
)
def test_classes_that_cannot_be_counted_are_refused(labels: list[int], predictions: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        confusion_matrix(np.array(labels), np.array(predictions), 3)


@pytest.mark.parametrize("shape", [(2, 3), (4,)])
def test_a_matrix_that_is_not_square_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="square confusion matrix"):
        classification_metrics(np.zeros(shape, np.int64))
