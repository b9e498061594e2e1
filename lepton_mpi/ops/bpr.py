"""Bayesian personalised ranking: what is preferred should score higher. Dims: N pairs.

Rendle, Freudenthaler, Gantner, Schmidt-Thieme 2009, "BPR: Bayesian personalized ranking from implicit feedback",
section 4.1; the regularisation term there is the optimizer's weight decay here.
"""

from __future__ import annotations

import numpy as np

from lepton_mpi.ops.array_module import Array, array_module
from lepton_mpi.ops.checks import check_shape
from lepton_mpi.ops.softplus import logistic, softplus


def bpr(scores: Array) -> float:
    """Return the sum of -log sigmoid(s_preferred - s_other), in float64. Local.

    Args:
        scores: [N, 2]: of the preferred item and of the other; N may be 0.

    Raises:
        ValueError: another shape.
    """
    check_shape("scores", scores, (None, 2))
    return float(softplus(scores[:, 1] - scores[:, 0]).sum(dtype=np.float64))


def bpr_backward(scores: Array, factor: float) -> Array:
    """Return factor * d loss / d scores. Local.

    Args:
        scores: as in `bpr`.
        factor: factor of the gradient.

    Returns:
        A new array [N, 2] of the scores' dtype.

    Raises:
        ValueError: another shape.
    """
    check_shape("scores", scores, (None, 2))
    slope = logistic(scores[:, 1] - scores[:, 0]) * scores.dtype.type(factor)
    dscores: Array = array_module(scores).stack([-slope, slope], axis=1)
    return dscores
