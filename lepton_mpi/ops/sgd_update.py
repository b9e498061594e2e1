"""Stochastic gradient descent with momentum and weight decay, in place."""

from __future__ import annotations

import numpy as np

from lepton_mpi import native
from lepton_mpi.ops.array_module import Array, array_module
from lepton_mpi.ops.checks import check_slices
from lepton_mpi.ops.cuda_module import check_device_arrays, launch


def sgd_update(
    values: Array,
    grads: Array,
    momentum_buffer: Array | None,
    *,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    grad_scale: float = 1.0,
) -> None:
    """Take one step of SGD on a slice. Local.

    g = grad_scale * grad + weight_decay * value; m = momentum * m + g; value -= lr * m, or lr * g without
    a momentum buffer: PyTorch's convention, no dampening. C++, CUDA and reference agree bit for bit.

    Args:
        values: float32 [n]; the caller's, updated.
        grads: float32 [n]; read only.
        momentum_buffer: float32 [n], zeros before the first step; the caller's, updated; None: no momentum.
        lr: learning rate.
        momentum: decay of the momentum buffer.
        weight_decay: share of the values added to the gradient.
        grad_scale: factor of the gradients, for clipping.

    Raises:
        ValueError: dtypes, sizes or layouts do not fit.
    """
    arrays = {"values": values, "grads": grads}
    if momentum_buffer is not None:
        arrays["momentum_buffer"] = momentum_buffer
    check_slices(**arrays)
    if array_module(values) is np:
        native.sgd_update(values, grads, momentum_buffer, lr, momentum, weight_decay, grad_scale)
        return
    check_device_arrays(**arrays)
    scalars = (np.float32(scalar) for scalar in (lr, momentum, weight_decay, grad_scale))
    if momentum_buffer is None:
        launch("sgd_update", values.size, values, grads, np.uint64(0), np.int64(values.size), *scalars)
    else:
        launch("sgd_update", values.size, values, grads, momentum_buffer, np.int64(values.size), *scalars)


def sgd_update_reference(
    values: Array,
    grads: Array,
    momentum_buffer: Array | None,
    *,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    grad_scale: float = 1.0,
) -> None:
    """Do what `sgd_update` does, in NumPy. Local."""
    step = grads * np.float32(grad_scale) + np.float32(weight_decay) * values
    if momentum_buffer is not None:
        momentum_buffer[:] = np.float32(momentum) * momentum_buffer + step
        step = momentum_buffer
    values -= np.float32(lr) * step
