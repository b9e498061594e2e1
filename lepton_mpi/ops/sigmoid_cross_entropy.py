"""Cross entropy of yes-or-no outcomes. Dims: any; values that belong together have the same place.

As PyTorch's `nn.BCEWithLogitsLoss`: -(p t log s(x) + (1 - t) log(1 - s(x))) with s the sigmoid and p the weight of yes.
"""

from __future__ import annotations

import numpy as np

from lepton_mpi.errors import DataError
from lepton_mpi.ops.array_module import Array
from lepton_mpi.ops.checks import check_shape
from lepton_mpi.ops.softplus import logistic, softplus


def sigmoid_cross_entropy(logits: Array, targets: Array, pos_weight: Array | None = None) -> float:
    """Return the sum of the cross entropies, in float64. Local.

    Args:
        logits: [N, D]; N may be 0.
        targets: [N, D], probabilities of yes, each in [0, 1].
        pos_weight: [D], factor of the loss of a yes, or None for ones.

    Raises:
        ValueError: the shapes do not fit.
        DataError: a target is not in [0, 1].
    """
    _check(logits, targets, pos_weight)
    yes = targets if pos_weight is None else targets * pos_weight
    losses = yes * softplus(-logits) + (1 - targets) * softplus(logits)
    return float(losses.sum(dtype=np.float64))


def sigmoid_cross_entropy_backward(logits: Array, targets: Array, factor: float, pos_weight: Array | None = None) -> Array:
    """Return factor * d loss / d logits. Local.

    Args:
        logits: as in `sigmoid_cross_entropy`.
        targets: likewise.
        factor: factor of the gradient.
        pos_weight: likewise.

    Returns:
        A new array of the logits' shape and dtype.

    Raises:
        ValueError: the shapes do not fit.
        DataError: a target is not in [0, 1].
    """
    _check(logits, targets, pos_weight)
    yes = targets if pos_weight is None else targets * pos_weight
    slope = logistic(logits) * (yes + (1 - targets)) - yes
    dlogits: Array = (slope * factor).astype(logits.dtype, copy=False)
    return dlogits


def _check(logits: Array, targets: Array, pos_weight: Array | None) -> None:
    check_shape("targets", targets, logits.shape)
    if pos_weight is not None:
        check_shape("pos_weight", pos_weight, logits.shape[-1:])
    outside = ~((targets >= 0) & (targets <= 1))  # so that NaN is outside
    if bool(outside.any()):
        place = np.unravel_index(int(outside.argmax()), targets.shape)
        at = ", ".join(str(int(index)) for index in place)
        raise DataError(f"target [{at}]: expected a number in [0, 1], received {float(targets[place])}")
