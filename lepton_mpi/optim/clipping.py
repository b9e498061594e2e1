"""Gradient clipping by global norm."""

from __future__ import annotations


def clip_scale(norm: float, clip_norm: float) -> float:
    """Return the factor that brings a gradient of this norm to at most `clip_norm`. Local, pure.

    Source: Pascanu, Mikolov and Bengio 2013, algorithm 1.

    Args:
        norm: global norm of the gradient.
        clip_norm: largest norm; 0: no clipping.
    """
    return clip_norm / norm if 0.0 < clip_norm < norm else 1.0
