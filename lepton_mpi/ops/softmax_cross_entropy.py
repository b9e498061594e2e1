"""Cross entropy of softmax probabilities. Dims: N labels, C classes.

The definitions are those of PyTorch's `nn.CrossEntropyLoss`. Smoothing (Szegedy et al. 2016, "Rethinking the inception
architecture for computer vision", section 7) replaces the target by (1 - s) onehot(label) + s / C; every class's term has
that class's weight, and a label counts with the weight of its class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np

from lepton_mpi import native
from lepton_mpi.errors import DataError
from lepton_mpi.ops.array_module import Array, array_module
from lepton_mpi.ops.checks import check_shape

IGNORED_LABEL: Final = -100


@final
@dataclass(frozen=True)
class CrossEntropySums:
    """Sums over labels.

    Attributes:
        loss: sum of weight times loss, in float64.
        weight: sum of the labels' weights.
        num_correct: labels of nonzero weight whose class has the first largest logit.
        num_counted: labels of nonzero weight.
    """

    loss: float
    weight: float
    num_correct: int
    num_counted: int


def softmax_cross_entropy(
    logits: Array, labels: Array, class_weights: Array | None = None, label_smoothing: float = 0.0
) -> CrossEntropySums:
    """Return the cross entropy of logits, without its gradient. Local.

    Args:
        logits: [..., C]; there may be no labels.
        labels: int64 [...], classes in [0, C), or IGNORED_LABEL for what has neither loss nor gradient.
        class_weights: [C] of the logits' dtype, or None for ones.
        label_smoothing: s, in [0, 1).

    Raises:
        ValueError: the shapes or dtypes do not fit.
        DataError: a label is out of range.
    """
    _check(logits, labels, class_weights)
    if _has_kernel(logits):
        return _on_cpu(logits, labels, class_weights, label_smoothing, 0.0, None)
    return _sums(logits, labels, class_weights, label_smoothing)[0]


def softmax_cross_entropy_with_gradient(
    logits: Array, labels: Array, factor: float, class_weights: Array | None = None, label_smoothing: float = 0.0
) -> tuple[CrossEntropySums, Array]:
    """Return the cross entropy of logits, and factor * d loss / d logits. Local.

    Args:
        logits: as in `softmax_cross_entropy`; read only.
        labels: likewise.
        factor: factor of the gradient alone.
        class_weights: likewise.
        label_smoothing: likewise.

    Returns:
        The sums, and a new array of the logits' shape and dtype.

    Raises:
        ValueError: the shapes or dtypes do not fit.
        DataError: a label is out of range.
    """
    _check(logits, labels, class_weights)
    if _has_kernel(logits):
        dlogits = np.empty(logits.shape, np.float32)
        return _on_cpu(logits, labels, class_weights, label_smoothing, factor, dlogits), dlogits
    return softmax_cross_entropy_reference(logits, labels, factor, class_weights, label_smoothing)


def softmax_cross_entropy_reference(
    logits: Array, labels: Array, factor: float, class_weights: Array | None = None, label_smoothing: float = 0.0
) -> tuple[CrossEntropySums, Array]:
    """Return what `softmax_cross_entropy_with_gradient` does, on any array module and dtype. Local."""
    sums, probabilities, targets = _sums(logits, labels, class_weights, label_smoothing)
    dlogits = probabilities * targets.sum(axis=-1, keepdims=True)
    dlogits -= targets
    dlogits *= logits.dtype.type(factor)
    # A row that counts nothing has a zero gradient, even where its logits are not finite.
    dlogits[labels.reshape(-1) == IGNORED_LABEL] = 0
    return sums, dlogits.reshape(logits.shape)


def _sums(
    logits: Array, labels: Array, class_weights: Array | None, label_smoothing: float
) -> tuple[CrossEntropySums, Array, Array]:
    """Return the sums, and probabilities and weighted targets as [N, C]."""
    xp, num_classes = array_module(logits), logits.shape[-1]
    rows, classes = logits.reshape(-1, num_classes), labels.reshape(-1)
    counts = classes != IGNORED_LABEL
    places, known = xp.arange(classes.size), xp.where(counts, classes, 0)
    weights = xp.ones(num_classes, rows.dtype) if class_weights is None else class_weights
    weight_of_row = xp.where(counts, weights[known], 0)
    targets = xp.where(counts[:, None], weights * rows.dtype.type(label_smoothing / num_classes), 0)
    targets[places, known] += weight_of_row * rows.dtype.type(1 - label_smoothing)
    # The largest logit of a row is subtracted first, so that no exponential overflows.
    shifted = rows - rows.max(axis=1, keepdims=True)
    exponentials: Any = xp.exp(shifted)
    total = exponentials.sum(axis=1, dtype=np.float64)
    log_probabilities = shifted - xp.log(total)[:, None]
    # A class without target adds nothing, even where its probability is zero and its logarithm infinite.
    terms = targets * xp.where(targets != 0, log_probabilities, 0)
    losses = xp.where(counts, -terms.sum(axis=1, dtype=np.float64), 0)
    # A NaN in the row is in its total, though perhaps not in the terms that count.
    losses = xp.where(counts & xp.isnan(total), np.nan, losses)
    right = (rows.argmax(axis=1) == known) & (weight_of_row != 0) & ~xp.isnan(total)
    sums = CrossEntropySums(
        loss=float(losses.sum()),
        weight=float(weight_of_row.sum(dtype=np.float64)),
        num_correct=int(right.sum()),
        num_counted=int((weight_of_row != 0).sum()),
    )
    return sums, exponentials / total.astype(rows.dtype)[:, None], targets


def _on_cpu(
    logits: Array, labels: Array, class_weights: Array | None, label_smoothing: float, factor: float, dlogits: Array | None
) -> CrossEntropySums:
    return CrossEntropySums(
        *native.softmax_cross_entropy(
            np.ascontiguousarray(logits).reshape(-1),
            np.ascontiguousarray(labels).reshape(-1),
            logits.shape[-1],
            None if class_weights is None else np.ascontiguousarray(class_weights),
            label_smoothing,
            factor,
            None if dlogits is None else dlogits.reshape(-1),
        )
    )


def _has_kernel(logits: Array) -> bool:
    return array_module(logits) is np and logits.dtype == np.float32


def _check(logits: Array, labels: Array, class_weights: Array | None) -> None:
    num_classes = logits.shape[-1]
    check_shape("labels", labels, logits.shape[:-1])
    if class_weights is not None:
        check_shape("class_weights", class_weights, (num_classes,))
        if class_weights.dtype != logits.dtype:
            raise ValueError(f"class_weights: expected {logits.dtype} as the logits, received {class_weights.dtype}")
    check_labels(labels, num_classes)


def check_labels(labels: Array, num_classes: int) -> None:
    """Require labels to be classes or IGNORED_LABEL. Local.

    Args:
        labels: int64 [...].
        num_classes: classes are in [0, num_classes).

    Raises:
        ValueError: another dtype.
        DataError: a label is out of range; names it, its place and the range.
    """
    if labels.dtype != np.int64:
        raise ValueError(f"labels: expected int64, received {labels.dtype}")
    outside = ((labels < 0) & (labels != IGNORED_LABEL)) | (labels >= num_classes)
    if bool(outside.any()):
        place = np.unravel_index(int(outside.argmax()), labels.shape)
        at = ", ".join(str(int(index)) for index in place)
        raise DataError(
            f"label [{at}]: expected a class in [0, {num_classes}), or {IGNORED_LABEL} for none, received {int(labels[place])}"
        )
