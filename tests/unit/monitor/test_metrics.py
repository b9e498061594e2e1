"""Metrics of the tasks against their formulas, in parts and as a whole."""

import math
from itertools import pairwise

import numpy as np
import pytest

from lepton_mpi.errors import ConfigError, DataError
from lepton_mpi.monitor.binary_metrics import BinarySums, area_under_roc
from lepton_mpi.monitor.classification import classification_metrics, confusion_matrix
from lepton_mpi.monitor.metrics import (
    ClassificationSums,
    Evaluation,
    LanguageModelSums,
    MetricSums,
    RegressionSums,
    SegmentationSums,
)
from lepton_mpi.monitor.ranking_metrics import RankingSums


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def classes(num_classes, *shape, seed=1):
    """Labels of which some are to be left out."""
    labels = np.random.default_rng(seed).integers(0, num_classes, shape)
    labels.reshape(-1)[3::7] = -100
    return labels


def answers(*shape):
    return (normal(*shape, seed=2) > 0).astype(np.float32)


# How to begin, the outputs, the labels; and which totals are no counts.
TASKS = [
    pytest.param(lambda: ClassificationSums(5), normal(23, 5), classes(5, 23), id="classification"),
    pytest.param(lambda: SegmentationSums(4), normal(7, 3, 5, 4), classes(4, 7, 3, 5), id="segmentation"),
    pytest.param(LanguageModelSums, normal(7, 11, 13), classes(13, 7, 11), id="language_model"),
    pytest.param(lambda: RegressionSums(3), normal(23, 3), normal(23, 3, seed=3) + 5, id="regression"),
    pytest.param(lambda: ClassificationSums(9), normal(23, 9), classes(9, 23), id="many_classes"),
    pytest.param(lambda: BinarySums(2), normal(23, 2), answers(23, 2), id="binary"),
    pytest.param(RankingSums, normal(23, 14), None, id="ranking"),
]


def evaluated(sums: MetricSums, output, target) -> Evaluation:
    sums.add(output, target)
    return sums.evaluation(sums.totals, sums.rows)


def log_softmax(x):
    x = x.astype(np.float64)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def mean_cross_entropy(output, labels):
    return -np.mean([row[y] for row, y in zip(log_softmax(output), labels, strict=True)])


@pytest.mark.parametrize(("begin", "output", "target"), TASKS)
def test_parts_have_the_totals_of_the_whole(begin, output, target):
    whole, ranks = begin(), [begin() for _ in range(3)]
    whole.add(output, target)
    for first, rank in zip((0, 2, 2), ranks, strict=True):  # the second one gets no rows
        rows = slice(first, {0: 2, 2: len(output)}[first] if rank is not ranks[1] else first)
        for part in (slice(rows.start, rows.start + 1), slice(rows.start + 1, rows.stop)) if rank is not ranks[1] else (rows,):
            rank.add(output[part], None if target is None else target[part])
    summed = np.sum([rank.totals for rank in ranks], axis=0)
    assert summed.shape == whole.totals.shape and summed.dtype == np.float64 and summed.ndim == 1
    np.testing.assert_allclose(summed, whole.totals, rtol=1e-12)
    is_count = whole.totals == np.round(whole.totals)
    assert is_count.any()
    np.testing.assert_array_equal(summed[is_count], whole.totals[is_count])
    rows = np.concatenate([rank.rows for rank in ranks])
    assert rows.shape == (len(output) if whole.row_size else 0, whole.row_size) and rows.dtype == np.float32
    received, expected = whole.evaluation(summed, rows), whole.evaluation(whole.totals, whole.rows)
    assert tuple(received.values) == whole.names
    assert received.values == pytest.approx(expected.values, rel=1e-9)
    assert all(type(value) is float for value in received.values.values())
    for name in {"auc", "top5_accuracy", "hit_rate_at_10", "ndcg_at_10"} & received.values.keys():
        assert received.values[name] == expected.values[name]  # to a bit
        assert 0 < received.values[name] < 1


@pytest.mark.parametrize(("begin", "output", "target"), TASKS)
def test_nan_outputs_show_in_the_loss(begin, output, target):
    broken = output.copy()
    broken[(0,) * output.ndim] = np.nan
    values = evaluated(begin(), broken, target).values
    assert math.isnan(values["loss" if "loss" in values else "rmse"])


@pytest.mark.parametrize(("begin", "output", "target"), TASKS)
def test_nothing_counted_has_no_loss(begin, output, target):
    values = evaluated(begin(), output[:0], None if target is None else target[:0]).values
    assert math.isnan(values["loss" if "loss" in values else "rmse"])


@pytest.mark.parametrize(("begin", "output", "target"), TASKS)
def test_directions(begin, output, target):
    sums = begin()
    lower = {name for name in sums.names if not sums.higher_is_better(name)}
    assert lower == set(sums.names) & {"loss", "perplexity", "rmse", "mae"}
    with pytest.raises(ConfigError, match=f"unknown metric 'best': expected one of {', '.join(sums.names)}$"):
        sums.higher_is_better("best")


def test_another_metric_may_lead():
    found = Evaluation({"accuracy": 0.5, "mean_iou": 0.25, "loss": 1.0}).led_by("mean_iou")
    assert found.main == ("mean iou", 0.25)
    assert list(found.values.items()) == [("mean_iou", 0.25), ("accuracy", 0.5), ("loss", 1.0)]


def test_classification():
    output, labels = normal(29, 5), classes(5, 29)
    found = evaluated(ClassificationSums(5), output, labels)
    counts = labels != -100
    table = classification_metrics(confusion_matrix(labels[counts], output[counts].argmax(axis=1), 5))
    assert found.classification == table
    np.testing.assert_array_equal(found.confusion, confusion_matrix(labels[counts], output[counts].argmax(axis=1), 5))
    assert found.values == {
        "accuracy": table.accuracy,
        "precision": table.precision,
        "recall": table.recall,
        "f1": table.f1,
        "loss": pytest.approx(mean_cross_entropy(output[counts], labels[counts]), rel=1e-6),
    }


def test_segmentation():
    predictions = np.array([[[0, 0, 1], [1, 3, 3]]])
    labels = np.array([[[0, 1, 1], [1, 0, -100]]])
    found = evaluated(SegmentationSums(5), np.eye(5, dtype=np.float32)[predictions] * 9, labels)
    assert found.classification is None
    # Class 0: 1 of 3 pixels, class 1: 2 of 3, class 3: predicted only, 0 of 1; classes 2 and 4 do not occur.
    right, wrong = np.log(1 + 4 * np.exp(-9.0)), np.log(1 + 4 * np.exp(-9.0)) + 9
    assert found.values == pytest.approx(
        {"pixel_accuracy": 3 / 5, "mean_iou": (1 / 3 + 2 / 3 + 0) / 3, "loss": (3 * right + 2 * wrong) / 5}, rel=1e-6
    )


def test_language_model():
    output, labels = normal(3, 7, 11), classes(11, 3, 7)
    counts = labels != -100
    loss = mean_cross_entropy(output[counts], labels[counts])
    right = (output.argmax(axis=2) == labels)[counts].mean()
    expected = {"loss": loss, "perplexity": np.exp(loss), "token_accuracy": right}
    assert evaluated(LanguageModelSums(), output, labels).values == pytest.approx(expected, rel=1e-6)


def test_a_perplexity_that_overflows_is_infinite():
    values = evaluated(LanguageModelSums(), np.array([[[0, 1000]]], np.float32), np.array([[0]])).values
    assert values == {"loss": 1000.0, "perplexity": math.inf, "token_accuracy": 0.0}


@pytest.mark.parametrize("offset", [0.0, 300.0])
@pytest.mark.parametrize("pivot", [0.0, np.array([299.0, 301.0, 300.5])])
def test_regression(offset, pivot):
    y, output = normal(31, 3) + np.float32(offset), normal(31, 3, seed=4) + np.float32(offset)
    errors, spread = (y - output.astype(np.float64)), y - y.mean(axis=0, dtype=np.float64)
    r2 = 1 - (errors**2).sum(axis=0) / (spread**2).sum(axis=0)
    expected = {"rmse": math.sqrt((errors**2).mean()), "mae": np.abs(errors).mean(), "r2": r2.mean()}
    assert evaluated(RegressionSums(3, pivot), output, y).values == pytest.approx(expected, rel=1e-9)


def test_r2_of_targets_that_are_all_equal():
    y = np.full(1001, 0.1, np.float32)
    exact = evaluated(RegressionSums(1), y[:, np.newaxis], y).values
    assert exact == {"rmse": 0.0, "mae": 0.0, "r2": 1.0}
    assert evaluated(RegressionSums(1), y[:, np.newaxis] + 1, y).values == pytest.approx({"rmse": 1, "mae": 1, "r2": 0})


def test_binary():
    output, y = normal(31, 2), answers(31, 2)
    said, true = output > 0, y > 0.5
    precision, recall = (said & true).sum() / said.sum(), (said & true).sum() / true.sum()
    chances = 1 / (1 + np.exp(-output.astype(np.float64)))
    expected = {
        "accuracy": (said == true).mean(),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall),
        "auc": np.mean([auc_of_pairs(output[:, d], true[:, d]) for d in range(2)]),
        "loss": -np.log(np.where(true, chances, 1 - chances)).mean(),
    }
    assert evaluated(BinarySums(2), output, y).values == pytest.approx(expected, rel=1e-6)
    assert evaluated(BinarySums(1), output[:, :1], y[:, 0]).values == evaluated(BinarySums(1), output[:, :1], y[:, :1]).values


def test_binary_without_any_yes():
    values = evaluated(BinarySums(1), np.full((3, 1), -1, np.float32), np.zeros(3, np.float32)).values
    assert (values["accuracy"], values["precision"], values["recall"], values["f1"]) == (1, 0, 0, 0)
    assert math.isnan(values["auc"])


def auc_of_pairs(scores, truths):
    """The share of pairs of a yes and a no that are in order, by a loop over all."""
    pairs = [(yes > no) + (yes == no) / 2 for yes in scores[truths] for no in scores[~truths]]
    return np.mean(pairs)


def auc_of_trapezoids(scores, truths):
    """The area under the curve of true over false positives, as scikit-learn's roc_auc_score."""
    cuts = np.sort(np.unique(scores))[::-1]
    curve = [(0.0, 0.0)] + [((scores[~truths] >= cut).mean(), (scores[truths] >= cut).mean()) for cut in cuts]
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(curve))


@pytest.mark.parametrize("num_levels", [1, 2, 3, 7, 1000])
def test_area_under_the_curve_with_ties(num_levels):
    random = np.random.default_rng(num_levels)
    scores, truths = random.integers(0, num_levels, 53).astype(np.float32), random.random(53) < 0.3
    found = area_under_roc(scores, truths)
    assert found == pytest.approx(auc_of_pairs(scores, truths), abs=1e-12)
    assert found == pytest.approx(auc_of_trapezoids(scores, truths), abs=1e-12)
    order = random.permutation(53)
    assert area_under_roc(scores[order], truths[order]) == found
    assert area_under_roc(-scores, truths) == pytest.approx(1 - found, abs=1e-12)


def test_area_under_the_curve_at_its_ends():
    truths = np.array([True, False, True])
    assert area_under_roc(np.array([2.0, 1.0, np.inf]), truths) == 1
    assert area_under_roc(np.array([-np.inf, 1.0, 0.0]), truths) == 0
    assert math.isnan(area_under_roc(np.array([np.nan, 1.0, 0.0]), truths))
    for same in (np.ones(3, bool), np.zeros(3, bool), np.zeros(0, bool)):
        assert math.isnan(area_under_roc(np.zeros(len(same)), same))


def test_columns_with_one_answer_have_no_part_in_the_area():
    output, y = normal(31, 3), answers(31, 3)
    y[:, 1] = 1
    expected = np.mean([auc_of_pairs(output[:, d], y[:, d] > 0) for d in (0, 2)])
    assert evaluated(BinarySums(3), output, y).values["auc"] == pytest.approx(expected, abs=1e-12)


def test_the_five_best_classes():
    output, labels = normal(200, 9), classes(9, 200)
    output[::3] = np.round(output[::3])  # ties
    counts = labels != -100
    best = np.argsort(-output, axis=1, kind="stable")[:, :5]
    expected = (best == labels[:, None]).any(axis=1)[counts].mean()
    values = evaluated(ClassificationSums(9), output, labels).values
    assert values["top5_accuracy"] == expected
    assert list(values) == ["accuracy", "top5_accuracy", "precision", "recall", "f1", "loss"]
    assert "top5_accuracy" not in evaluated(ClassificationSums(5), output[:, :5], np.zeros(200, int)).values
    with np.errstate(invalid="ignore"):
        broken = evaluated(ClassificationSums(6), np.full((2, 6), np.nan, np.float32), np.array([0, 5])).values
    assert broken["top5_accuracy"] == 0


def test_ranking_pairs():
    scores = np.array([[2, 1], [1, 2], [1, 1]], np.float32)
    expected = {"pair_accuracy": 1 / 3, "loss": (np.log(1 + np.exp(-1)) + np.log(1 + np.exp(1)) + np.log(2)) / 3}
    found = evaluated(RankingSums(), scores, None).values
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    gains = (1 + 1 / np.log2(3) + 1 / np.log2(3)) / 3
    assert (found["hit_rate_at_10"], found["ndcg_at_10"]) == pytest.approx((1, gains))


def test_places_of_the_chosen_item():
    scores = normal(40, 100)
    scores[::4] = np.round(scores[::4])  # ties, which are wrong
    scores[7, 0] = np.nan
    places = [sum(not row[0] > other for other in row[1:]) for row in scores]
    found = evaluated(RankingSums(), scores, None).values
    assert found["hit_rate_at_10"] == np.mean([place < 10 for place in places])
    assert found["ndcg_at_10"] == pytest.approx(np.mean([1 / np.log2(place + 2) if place < 10 else 0 for place in places]))
    assert found["pair_accuracy"] == pytest.approx(1 - np.mean(places) / 99)
    assert 0 < found["hit_rate_at_10"] < 1


@pytest.mark.parametrize(
    "begin", [lambda: ClassificationSums(3), LanguageModelSums, lambda: RegressionSums(3), lambda: BinarySums(3)]
)
def test_labels_are_required(begin):
    with pytest.raises(ValueError, match="target: expected labels, received None"):
        begin().add(np.zeros((2, 3), np.float32), None)


def test_labels_out_of_range_are_refused():
    for sums in (ClassificationSums(3), LanguageModelSums()):
        with pytest.raises(DataError, match=r"label \[1\]: expected a class in \[0, 3\)"):
            sums.add(np.zeros((2, 3), np.float32), np.array([0, 3]))
