"""Preconditions of the operations. Their errors are the caller's bugs, hence ValueError."""

from __future__ import annotations

import numpy as np

from lepton_mpi.ops.array_module import Array


def check_shape(name: str, array: Array, expected: tuple[int | None, ...]) -> None:
    """Require a shape; None stands for any length of a dim. Local.

    Raises:
        ValueError: another number of dims or another length.
    """
    if len(array.shape) != len(expected) or any(
        want is not None and got != want for want, got in zip(expected, array.shape, strict=True)
    ):
        shown = ", ".join("any" if want is None else str(want) for want in expected)
        raise ValueError(f"{name}: expected shape ({shown}), received {tuple(array.shape)}")


def check_slices(**arrays: Array) -> None:
    """Require one-dimensional, contiguous float32 arrays of one size. Local.

    Raises:
        ValueError: another dtype, shape, layout, or another size than the first one's.
    """
    sizes = {name: array.size for name, array in arrays.items()}
    size = next(iter(sizes.values()))
    for name, array in arrays.items():
        if array.dtype != np.float32 or array.shape != (size,) or not array.flags.c_contiguous:
            raise ValueError(
                f"{name}: expected contiguous float32 of shape ({size},), received {array.dtype} of shape {tuple(array.shape)} "
                f"with strides {array.strides}"
            )


def check_moments(step: int, beta1: float, beta2: float) -> None:
    """Require the numbers that Adam's bias corrections are made of. Local.

    Args:
        step: number of a step, from 1.
        beta1, beta2: decays of the two moments, in [0, 1).

    Raises:
        ValueError: one is out of range.
    """
    if step < 1:
        raise ValueError(f"step: expected 1 or more, since bias corrections divide by 1 - beta^step, received {step}")
    check_beta("beta1", beta1)
    check_beta("beta2", beta2)


def check_beta(name: str, beta: float) -> None:
    """Require the decay of a moment to be in [0, 1). Local.

    Raises:
        ValueError: it is not.
    """
    if not 0.0 <= beta < 1.0:
        raise ValueError(f"{name}: expected a number in [0, 1), received {beta}")
