"""Cross entropy of softmax probabilities for targets that are shares of classes. Dims: N labels, C classes.

Loss and smoothing are those of PyTorch's `nn.CrossEntropyLoss` with class probabilities. A label weighs
sum_c weight_c target_c, so that a target with a single 1 is the same as the number of its class, and one of zeros counts
nothing; PyTorch's mean counts each label as 1 instead.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lepton_mpi.errors import DataError
from lepton_mpi.ops.array_module import Array, array_module
from lepton_mpi.ops.checks import check_shape
from lepton_mpi.ops.softmax_cross_entropy import CrossEntropySums


def soft_cross_entropy_with_gradient(
    logits: Array, targets: Array, factor: float, class_weights: Array | None = None, label_smoothing: float = 0.0
) -> tuple[CrossEntropySums, Array]:
    """Return the cross entropy of logits, and factor * d loss / d logits. Local.

    Args:
        logits: [..., C]; there may be no labels. Read only.
        targets: [..., C] in [0, 1], shares that add up to 1, or zeros for what has neither loss nor gradient.
        factor: factor of the gradient alone.
        class_weights: [C] of the logits' dtype, or None for ones.
        label_smoothing: s, in [0, 1).

    Returns:
        The sums, where a label is right if its largest share and the largest logit come first at one class, and a new array
        of the logits' shape and dtype.

    Raises:
        ValueError: the shapes do not fit.
        DataError: a target is not in [0, 1].
    """
    _check(logits, targets, class_weights)
    xp, num_classes = array_module(logits), logits.shape[-1]
    rows, shares = logits.reshape(-1, num_classes), targets.reshape(-1, num_classes).astype(logits.dtype, copy=False)
    weights = xp.ones(num_classes, rows.dtype) if class_weights is None else class_weights
    row_weights = (shares * weights).sum(axis=1, dtype=np.float64)
    share = shares.sum(axis=1, keepdims=True)
    weighted = weights * (shares * rows.dtype.type(1 - label_smoothing) + share * rows.dtype.type(label_smoothing / num_classes))
    # The largest logit of a row is subtracted first, so that no exponential overflows.
    shifted = rows - rows.max(axis=1, keepdims=True)
    exponentials: Any = xp.exp(shifted)
    total = exponentials.sum(axis=1, dtype=np.float64)
    log_probabilities = shifted - xp.log(total)[:, None]
    # A class without a share adds nothing, even where its probability is zero and its logarithm infinite.
    losses = -(weighted * xp.where(weighted != 0, log_probabilities, 0)).sum(axis=1, dtype=np.float64)
    counts = share[:, 0] != 0
    losses = xp.where(counts & xp.isnan(total), np.nan, losses)
    right = (rows.argmax(axis=1) == shares.argmax(axis=1)) & (row_weights != 0) & ~xp.isnan(total)
    sums = CrossEntropySums(float(losses.sum()), float(row_weights.sum()), int(right.sum()), int((row_weights != 0).sum()))
    dlogits = exponentials / total.astype(rows.dtype)[:, None] * weighted.sum(axis=1, keepdims=True)
    dlogits -= weighted
    dlogits *= rows.dtype.type(factor)
    dlogits[~counts] = 0  # even where the logits are not finite
    return sums, dlogits.reshape(logits.shape)


def _check(logits: Array, targets: Array, class_weights: Array | None) -> None:
    check_shape("targets", targets, logits.shape)
    if class_weights is not None:
        check_shape("class_weights", class_weights, logits.shape[-1:])
    outside = ~((targets >= 0) & (targets <= 1))  # so that NaN is outside
    if bool(outside.any()):
        place = np.unravel_index(int(outside.argmax()), targets.shape)
        at = ", ".join(str(int(index)) for index in place)
        raise DataError(f"target [{at}]: expected a share in [0, 1], received {float(targets[place])}")
