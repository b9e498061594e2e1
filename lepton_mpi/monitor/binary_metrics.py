"""Metrics of yes-or-no answers."""

from __future__ import annotations

from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.monitor.classification import classification_metrics
from lepton_mpi.monitor.metrics import Evaluation, MetricSums, Rows, Totals, given, mean
from lepton_mpi.nn.losses import as_shaped
from lepton_mpi.ops.sigmoid_cross_entropy import sigmoid_cross_entropy


@final
class BinarySums(MetricSums):
    """Yes-or-no answers: output [B, D], target float32 [B, D] in [0, 1], or [B] where D is 1.

    All D answers count alike. An answer is yes where output > 0, a label where target > 0.5; precision, recall and f1
    are of yes, 0 where their denominator is. auc is the mean of `area_under_roc` over those of the D columns that have both
    yes and no among their labels. A row of a sample is its D outputs and its D labels.
    """

    names = ("accuracy", "precision", "recall", "f1", "auc", "loss")

    def __init__(self, num_outputs: int) -> None:
        """Begin with nothing counted. num_outputs: D."""
        super().__init__(5, 2 * num_outputs)

    def add(self, output: NDArray[np.floating], target: NDArray[np.generic] | None) -> None:
        labels = as_shaped(given(target), output)
        answers, truths = output > 0, labels > 0.5
        counts = [float((a & t).sum()) for t in (~truths, truths) for a in (~answers, answers)]
        self.totals += (*counts, sigmoid_cross_entropy(output, labels))
        pair = [np.asarray(x, np.float32).reshape(len(output), self.row_size // 2) for x in (output, truths)]
        self._rows.append(np.concatenate(pair, axis=1))

    def evaluation(self, totals: Totals, rows: Rows) -> Evaluation:
        confusion = totals[:-1].astype(np.int64).reshape(2, 2)
        found = classification_metrics(confusion)
        yes = found.per_class[1]
        scores, truths = np.hsplit(rows, 2)
        columns = zip(scores.T, truths.T > 0, strict=True)
        areas = [area_under_roc(score, truth) for score, truth in columns if truth.any() and not truth.all()]
        auc, loss = mean(sum(areas), len(areas)), mean(totals[-1], confusion.sum())
        values = (found.accuracy, yes.precision, yes.recall, yes.f1, auc, loss)
        return Evaluation(dict(zip(self.names, values, strict=True)), confusion=confusion)


def area_under_roc(scores: NDArray[Any], truths: NDArray[np.bool_]) -> float:
    """Return the chance that a yes scores higher than a no, where equal scores count one half. Local.

    This is the area under the receiver operating characteristic, as the statistic of Mann and Whitney (Hanley and McNeil 1982,
    "The meaning and use of the area under a ROC curve", Radiology 143). Pairs are counted in integers: the order of the samples
    does not matter to a bit.

    Args:
        scores: [N], floats.
        truths: bool[N].

    Returns:
        The chance; NaN where all truths are equal or a score is NaN.
    """
    num_yes = int(truths.sum())
    num_no = len(truths) - num_yes
    if not num_yes or not num_no or np.isnan(scores).any():
        return float("nan")
    values, places = np.unique(scores, return_inverse=True)
    yes = np.bincount(places[truths], minlength=len(values))
    no = np.bincount(places[~truths], minlength=len(values))
    halves = int((yes * (2 * (np.cumsum(no) - no) + no)).sum())
    return halves / (2 * num_yes * num_no)
