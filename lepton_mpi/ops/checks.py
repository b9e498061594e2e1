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
