"""Softplus and its derivative, the logistic function (sigmoid)."""

from __future__ import annotations

from lepton_mpi.ops.array_module import Array, array_module


def softplus(x: Array) -> Array:
    """Return log(1 + e^x) without overflow; NaN stays NaN. Local.

    Returns:
        A new array of the shape and dtype of x.
    """
    xp = array_module(x)
    y: Array = xp.maximum(x, 0) + xp.log1p(xp.exp(-xp.abs(x)))
    return y


def logistic(x: Array) -> Array:
    """Return 1 / (1 + e^-x) without overflow; NaN stays NaN. Local.

    Returns:
        A new array of the shape and dtype of x.
    """
    xp = array_module(x)
    e = xp.exp(-xp.abs(x))  # never above 1
    y: Array = xp.where(x < 0, e, 1) / (1 + e)
    return y
