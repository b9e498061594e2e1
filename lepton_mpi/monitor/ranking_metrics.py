"""Metrics of rankings: one item that a user chose among others.

Sources: He, Liao, Zhang, Nie, Hu, Chua, "Neural collaborative filtering", WWW 2017, section 4.1 (the protocol); Jarvelin,
Kekalainen, "Cumulated gain-based evaluation of IR techniques", ACM TOIS 2002 (the discount).
"""

from __future__ import annotations

from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.monitor.metrics import Evaluation, MetricSums, Rows, Totals, mean
from lepton_mpi.ops.bpr import bpr

_LENGTH: Final = 10  # of the list that is shown to a user
# Gain of the chosen item at each place of the list; the best order has it at the first one, whose gain is 1.
_GAINS: Final = 1 / np.log2(np.arange(_LENGTH) + 2.0)


@final
class RankingSums(MetricSums):
    """Scores of the chosen item and of K others: output [B, 1 + K]; the target is not looked at.

    pair_accuracy and loss are means over all pairs of the chosen item and another. The place of the chosen item is the number of
    others that do not score lower, so equal scores are wrong. hit_rate_at_10 is the share of the samples that have it among
    the first ten, ndcg_at_10 the mean of 1 / log2(place + 2) over the samples, 0 after the tenth.
    """

    names = ("pair_accuracy", "hit_rate_at_10", "ndcg_at_10", "loss")

    def __init__(self) -> None:
        """Begin with nothing counted."""
        super().__init__(4 + _LENGTH)

    def add(self, output: NDArray[np.floating], target: NDArray[np.generic] | None) -> None:
        del target
        chosen, others = output[:, :1], output[:, 1:]
        lower = chosen > others  # false where one is NaN
        places = (~lower).sum(axis=1)
        pairs = np.stack([np.broadcast_to(chosen, others.shape), others], axis=-1).reshape(-1, 2)
        self.totals[:4] += (len(output), others.size, lower.sum(), bpr(pairs))
        self.totals[4:] += np.bincount(places[places < _LENGTH], minlength=_LENGTH)

    def evaluation(self, totals: Totals, rows: Rows) -> Evaluation:
        del rows
        (num_samples, num_pairs, num_right, loss), at_place = totals[:4], totals[4:]
        hits, gain = at_place.sum(), float((at_place * _GAINS).sum())
        values = (mean(num_right, num_pairs), mean(hits, num_samples), mean(gain, num_samples), mean(loss, num_pairs))
        return Evaluation(dict(zip(self.names, values, strict=True)))
