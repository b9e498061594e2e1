"""AdamW, in place: Loshchilov, Hutter, "Decoupled weight decay regularization", ICLR 2019, algorithm 2."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from lepton_mpi import native
from lepton_mpi.ops.array_module import Array, array_module
from lepton_mpi.ops.checks import check_moments, check_slices
from lepton_mpi.ops.cuda_module import check_device_arrays, launch


class AdamwScalars(NamedTuple):
    """The hyperparameters of one step, derived in double precision and then rounded once.

    The fields of the C++ struct of this name (kernels/include/lepton/update_math.hpp), in its order.
    """

    grad_scale: np.float32
    decay: np.float32
    beta1: np.float32
    one_minus_beta1: np.float32
    beta2: np.float32
    one_minus_beta2: np.float32
    inv_sqrt_bias2: np.float32
    step_size: np.float32
    epsilon: np.float32


def adamw_scalars(
    lr: float, beta1: float, beta2: float, epsilon: float, weight_decay: float, grad_scale: float, step: int
) -> AdamwScalars:
    """Return what the elementwise update needs at a step. Local."""
    bias1 = 1.0 - beta1**step
    bias2 = 1.0 - beta2**step
    return AdamwScalars(
        grad_scale=np.float32(grad_scale),
        decay=np.float32(1.0 - lr * weight_decay),
        beta1=np.float32(beta1),
        one_minus_beta1=np.float32(1.0 - beta1),
        beta2=np.float32(beta2),
        one_minus_beta2=np.float32(1.0 - beta2),
        inv_sqrt_bias2=np.float32(1.0 / math.sqrt(bias2)),
        step_size=np.float32(lr / bias1),
        epsilon=np.float32(epsilon),
    )


def adamw_update(
    values: Array,
    grads: Array,
    m: Array,
    v: Array,
    *,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    grad_scale: float = 1.0,
    step: int,
) -> None:
    """Take one step of AdamW on a slice. Local.

    g = grad_scale * grad; m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2;
    value = (1 - lr weight_decay) value - lr / bias1 * m / (sqrt(v) / sqrt(bias2) + epsilon), with
    bias = 1 - beta^step. C++, CUDA and reference agree bit for bit.

    Args:
        values: float32 [n]; the caller's, updated.
        grads: float32 [n]; read only.
        m: float32 [n], first moment, zeros before the first step; the caller's, updated.
        v: float32 [n], second moment, likewise.
        lr: learning rate.
        beta1: decay of the first moment, in [0, 1).
        beta2: decay of the second moment, in [0, 1).
        epsilon: guard against division by zero.
        weight_decay: decoupled weight decay.
        grad_scale: factor of the gradients, for clipping.
        step: number of this step, from 1.

    Raises:
        ValueError: dtypes, sizes or layouts do not fit, or a hyperparameter is out of range.
    """
    check_slices(values=values, grads=grads, m=m, v=v)
    check_moments(step, beta1, beta2)
    if array_module(values) is np:
        native.adamw_update(values, grads, m, v, lr, beta1, beta2, epsilon, weight_decay, grad_scale, step)
        return
    check_device_arrays(values=values, grads=grads, m=m, v=v)
    scalars = adamw_scalars(lr, beta1, beta2, epsilon, weight_decay, grad_scale, step)
    launch("adamw_update", values.size, values, grads, m, v, np.int64(values.size), *scalars)


def adamw_update_reference(values: Array, grads: Array, m: Array, v: Array, scalars: AdamwScalars) -> None:
    """Do what `adamw_update` does, in NumPy. Local."""
    s = scalars
    g = grads * s.grad_scale
    m[:] = s.beta1 * m + s.one_minus_beta1 * g
    v[:] = s.beta2 * v + s.one_minus_beta2 * (g * g)
    denominator = np.sqrt(v) * s.inv_sqrt_bias2 + s.epsilon
    values[:] = values * s.decay - s.step_size * (m / denominator)
