"""Which samples are held out or kept, every class in proportion."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.runtime.random import random_key, uniform

_HOLDOUT_KEY = random_key(0, "holdout")  # fixed: every run on a data set is judged on the same samples


def hold_out(labels: NDArray[np.int64], fraction: float) -> NDArray[np.bool_]:
    """Choose samples for testing, of each class in proportion. Local.

    The choice depends on the labels and the fraction alone. One sample of each class always stays
    for training.

    Args:
        labels: int64[N].
        fraction: share of the samples to choose, rounded down to a whole number of samples.

    Returns:
        bool[N], True where a sample is for testing.
    """
    num_samples = len(labels)
    order = np.lexsort((uniform(_HOLDOUT_KEY, 0, num_samples), labels))  # by class, at random within each
    ordered = labels[order]
    candidates = order[1:][ordered[1:] == ordered[:-1]]  # all but the first of each class
    count = min(int(num_samples * fraction), len(candidates))
    # Every len(candidates) / count-th, in integers: as evenly over the classes as whole numbers allow.
    held = np.zeros(num_samples, np.bool_)
    held[candidates[(np.arange(count) * len(candidates)) // max(count, 1)]] = True
    return held


def choose_first(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Choose samples of each class in proportion, the first of each. Local.

    Where there may be as many samples as classes, each class keeps one at least.

    Args:
        labels: int64[N].
        count: samples to choose, at most N.

    Returns:
        int64[count], increasing.
    """
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    is_first = np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(labels)]
    kept, others = order[is_first][:count], ~is_first
    spare, rest = count - len(kept), int(np.count_nonzero(others))
    # How many of all samples but the first ones precede each class, scaled down: as even as whole numbers allow.
    before = np.cumsum(others) - others
    chosen = others & ((before + 1) * spare // max(rest, 1) > before * spare // max(rest, 1))
    per_class = np.unique(ordered[chosen], return_counts=True)
    first_of = dict(zip(ordered[is_first].tolist(), np.flatnonzero(is_first).tolist(), strict=True))
    more = [order[first_of[value] + 1 :][:number] for value, number in zip(*(a.tolist() for a in per_class), strict=True)]
    return np.sort(np.concatenate([kept, *more]))
