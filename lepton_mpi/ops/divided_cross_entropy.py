"""Cross entropy of softmax probabilities whose classes are divided over ranks. Dims: R labels, C classes, K chunks of classes.

The definitions are those of `ops/softmax_cross_entropy.py`. A rank has the logits of some consecutive chunks of the classes. Of
each chunk it tells the others five numbers a label; from those of all chunks every rank finds the losses, and the gradient of
its own logits (Shoeybi et al. 2019, "Megatron-LM", section 3, exchange a maximum and a sum one after the other; here sums are
relative to the maximum of their chunk, as in Milakov and Gimelshein 2018, "Online normalizer calculation for softmax", and
leave together with it). Work on a chunk has the same shapes whoever has it, and what is added over chunks is added in their
order: the bits do not depend on how chunks are spread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias, final

import numpy as np

from lepton_mpi.ops.array_module import Array, array_module
from lepton_mpi.ops.checks import check_shape
from lepton_mpi.ops.softmax_cross_entropy import IGNORED_LABEL, CrossEntropySums, check_labels

# Makes [n, K], a column for each chunk, of the columns [n, own] of all ranks.
GatherColumns: TypeAlias = Callable[[Array], Array]


@final
@dataclass(frozen=True)
class ClassChunks:
    """The chunks of the classes, and which of them are here.

    Attributes:
        edges: K + 1 numbers from 0 to C; chunk k has the classes [edges[k], edges[k + 1]), at least one.
        first, last: the chunks here are [first, last).
    """

    edges: tuple[int, ...]
    first: int
    last: int

    @property
    def begin(self) -> int:
        """The first class here."""
        return self.edges[self.first]

    @property
    def stop(self) -> int:
        """The last class here, + 1."""
        return self.edges[self.last]

    @property
    def own(self) -> tuple[tuple[int, int], ...]:
        """First class and last class + 1 of each chunk here."""
        return tuple(pairwise(self.edges[self.first : self.last + 1]))


def divided_cross_entropy_with_gradient(
    logits: Array,
    labels: Array,
    factor: float,
    chunks: ClassChunks,
    gather: GatherColumns,
    class_weights: Array | None = None,
    label_smoothing: float = 0.0,
) -> tuple[CrossEntropySums, Array]:
    """Return the cross entropy of all logits, and factor * d loss / d logits of those here. Local but for `gather`.

    Args:
        logits: [..., classes here]; read only. There may be no labels.
        labels: int64 [...], classes in [0, C), or IGNORED_LABEL for what has neither loss nor gradient; the same on all ranks.
        factor: factor of the gradient alone.
        chunks: how the classes are divided.
        gather: brings the chunks of all ranks together; called once, with float64 [5 R, own chunks].
        class_weights: [C] of the logits' dtype, or None for ones.
        label_smoothing: s, in [0, 1).

    Returns:
        The sums, the same on all ranks, and a new array of the logits' shape and dtype.

    Raises:
        ValueError: the shapes or dtypes do not fit.
        DataError: a label is out of range.
    """
    num_classes = chunks.edges[-1]
    check_shape("logits", logits, (*labels.shape, chunks.stop - chunks.begin))
    check_labels(labels, num_classes)
    xp = array_module(logits)
    rows, classes = logits.reshape(labels.size, logits.shape[-1]), labels.reshape(-1)
    weights = xp.ones(num_classes, rows.dtype) if class_weights is None else class_weights
    check_shape("class_weights", weights, (num_classes,))
    smooth = weights.astype(np.float64) * (label_smoothing / num_classes)  # [C], of each row that counts
    counts = classes != IGNORED_LABEL
    known = xp.where(counts, classes, 0)
    weight_of_row = xp.where(counts, weights[known].astype(np.float64), 0)

    exponentials, told = _chunk_numbers(rows, known, chunks, smooth)
    every = gather(told.reshape(-1, told.shape[-1])).reshape(5, classes.size, len(chunks.edges) - 1)
    found = _Found(every, xp.asarray(chunks.edges), known)
    hit = weight_of_row * (1 - label_smoothing)
    # A class without target adds nothing, even where its probability is zero and its logarithm infinite.
    losses = xp.where(hit != 0, hit * (found.log_total - found.label_shifted), 0)
    if label_smoothing:
        losses += found.smoothed_loss(smooth, chunks.edges)
    losses = xp.where(counts, losses, 0)
    losses = xp.where(counts & xp.isnan(found.total), np.nan, losses)
    right = (found.best == known) & (weight_of_row != 0) & ~xp.isnan(found.total)
    sums = CrossEntropySums(float(losses.sum()), float(weight_of_row.sum()), int(right.sum()), int((weight_of_row != 0).sum()))

    target_sum = hit + (smooth.sum() if label_smoothing else 0.0)
    for k, (start, stop) in enumerate(chunks.own, chunks.first):
        coefficient = found.scale[:, k] / found.total * (target_sum * factor)
        exponentials[:, start - chunks.begin : stop - chunks.begin] *= coefficient.astype(rows.dtype)[:, None]
    if label_smoothing:
        exponentials -= (smooth[chunks.begin : chunks.stop] * factor).astype(rows.dtype)
    here = xp.nonzero((known >= chunks.begin) & (known < chunks.stop))[0]
    exponentials[here, known[here] - chunks.begin] -= (hit[here] * factor).astype(rows.dtype)
    # A row that counts nothing has a zero gradient, even where its logits are not finite.
    exponentials[~counts] = 0
    return sums, exponentials.reshape(logits.shape)


def _chunk_numbers(rows: Array, known: Array, chunks: ClassChunks, smooth: Array) -> tuple[Array, Array]:
    """Return exponentials of the logits here, relative to their chunk's largest, and the five numbers, [5, R, own chunks]."""
    xp = array_module(rows)
    exponentials = xp.empty(rows.shape, rows.dtype)
    told = xp.empty((5, len(rows), len(chunks.own)), np.float64)
    for k, (start, stop) in enumerate(chunks.own):
        part = rows[:, start - chunks.begin : stop - chunks.begin]
        largest = part.max(axis=1)
        base = xp.where(largest == -np.inf, rows.dtype.type(0), largest)  # where all are -inf, differences would be NaN
        shifted = part - base[:, None]  # contiguous, so that all that follows has the same bits on every grid
        told[0, :, k], told[1, :, k] = largest, part.argmax(axis=1) + start
        inside = xp.clip(known - start, 0, stop - start - 1)
        told[3, :, k] = shifted[xp.arange(len(rows)), inside]  # of the label, where it is in this chunk
        law = smooth[start:stop]
        told[4, :, k] = (law * xp.where(law != 0, shifted, 0)).sum(axis=1) if bool(law.any()) else 0
        xp.exp(shifted, out=shifted)
        told[2, :, k] = shifted.sum(axis=1, dtype=np.float64)
        exponentials[:, start - chunks.begin : stop - chunks.begin] = shifted
    return exponentials, told


class _Found:
    """What the numbers of all chunks tell of each row."""

    def __init__(self, every: Array, edges: Array, known: Array) -> None:
        xp = array_module(every)
        largest, places, sums, of_labels, self._smoothed = every
        rows = xp.arange(len(known))
        whole = largest.max(axis=1)
        # The difference of each chunk's base and the row's largest logit.
        self._offsets = xp.where(largest == -np.inf, 0, largest) - whole[:, None]
        self.scale = xp.exp(self._offsets)
        self.total = xp.zeros(len(known), np.float64)
        for k in range(largest.shape[1]):
            self.total += sums[:, k] * self.scale[:, k]
        self.log_total = xp.log(self.total)
        self.best = places[rows, largest.argmax(axis=1)]
        chunk = xp.searchsorted(edges, known, side="right") - 1
        self.label_shifted = of_labels[rows, chunk] + self._offsets[rows, chunk]

    def smoothed_loss(self, smooth: Array, edges: tuple[int, ...]) -> Any:
        """Return the part of each row's loss that comes from what smoothing spreads over all classes."""
        loss = smooth.sum() * self.log_total
        for k, (start, stop) in enumerate(pairwise(edges)):
            share = float(smooth[start:stop].sum())
            if share:
                loss -= self._smoothed[:, k] + share * self._offsets[:, k]
        return loss
