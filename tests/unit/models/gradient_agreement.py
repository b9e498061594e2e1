"""Gradients of a network of ours and of its twin in PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np


def assert_gradients_agree(pairs: dict[str, tuple[Any, Any]], dtype: str) -> None:
    """Require (ours, theirs) to be equal up to rounding: in float64 each one, in float32 all of them together.

    In float32 a ReLU or a maximum at its kink may fall either way. That changes an early, small gradient by some percent, though
    every operation is right.
    """
    if dtype == "float64":
        for name, (ours, theirs) in pairs.items():
            np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-9 * np.abs(theirs).max() + 1e-12, err_msg=name)
        return
    ours, theirs = (np.concatenate([pair[side].ravel() for pair in pairs.values()]) for side in (0, 1))
    assert np.linalg.norm(ours - theirs) <= 0.05 * np.linalg.norm(theirs)
