"""Cross entropy of softmax probabilities. Dims: B batch, C classes."""

from __future__ import annotations

import numpy as np

from lepton_mpi.ops.array_module import Array, array_module
from lepton_mpi.ops.checks import check_shape


def softmax_cross_entropy(logits: Array, labels: Array, weight: float) -> tuple[float, Array]:
    """Return the weighted sum of -log softmax(logits)[label], and the probabilities. Local.

    The largest logit of a row is subtracted first, so that no exponential overflows.

    Args:
        logits: [B, C]; B may be 0.
        labels: int64 [B], each in [0, C).
        weight: factor of every sample, 1 / global batch size for a mean.

    Returns:
        The loss, summed in float64, and the probabilities [B, C] in the dtype of the logits, which
        the backward pass needs.

    Raises:
        ValueError: the shapes do not fit, labels are no int64, or one is out of range.
    """
    check_shape("logits", logits, (None, None))
    batch_size, num_classes = logits.shape
    check_shape("labels", labels, (batch_size,))
    if labels.dtype != np.int64:
        raise ValueError(f"labels: expected int64, received {labels.dtype}")
    xp = array_module(logits)
    if batch_size == 0:
        return 0.0, xp.empty_like(logits)
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= num_classes:
        raise ValueError(f"labels: expected classes in [0, {num_classes}), received {lowest} to {highest}")
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_of_label = shifted[xp.arange(batch_size), labels].astype(np.float64)
    probabilities = xp.exp(shifted, out=shifted)
    total = probabilities.sum(axis=1, dtype=np.float64)
    probabilities /= total.astype(logits.dtype)[:, None]
    loss = float((xp.log(total) - log_of_label).sum()) * weight
    return loss, probabilities


def softmax_cross_entropy_backward(probabilities: Array, labels: Array, weight: float) -> Array:
    """Return dlogits = (probabilities - onehot(labels)) * weight. Local.

    Args:
        probabilities: [B, C], from the forward pass; read only.
        labels: int64 [B], as in the forward pass.
        weight: as in the forward pass.

    Returns:
        A new array [B, C].

    Raises:
        ValueError: the shapes do not fit.
    """
    check_shape("probabilities", probabilities, (None, None))
    check_shape("labels", labels, (probabilities.shape[0],))
    factor = probabilities.dtype.type(weight)
    dlogits: Array = probabilities * factor
    dlogits[array_module(probabilities).arange(labels.size), labels] -= factor
    return dlogits
