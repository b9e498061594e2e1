"""Bias and rectified linear unit in one pass over the result of a matrix product. Dims: B batch, O outputs."""

from __future__ import annotations

import numpy as np

from lepton_mpi.ops.array_module import Array, array_module
from lepton_mpi.ops.checks import check_shape
from lepton_mpi.ops.cuda_module import check_device_arrays, launch


def bias_relu(y: Array, b: Array) -> None:
    """Replace y by max(y + b, 0); NaN stays NaN. Local.

    Its backward pass is `relu_backward`, whose result is also the gradient of y before the bias.

    Args:
        y: [B, O], contiguous; the caller's, overwritten. B may be 0.
        b: [O], of the same dtype.

    Raises:
        ValueError: the shapes or dtypes do not fit, or y is not contiguous.
    """
    check_shape("y", y, (None, None))
    check_shape("b", b, (y.shape[1],))
    if array_module(y) is np:
        y += b
        np.maximum(y, y.dtype.type(0), out=y)
        return
    check_device_arrays(y=y, b=b)
    launch("bias_relu", y.size, y, b, np.int64(y.shape[0]), np.int64(y.shape[1]))
