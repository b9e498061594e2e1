"""Matrix products in the precision of a run: the one place that multiplies."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from lepton_mpi import native
from lepton_mpi.ops.array_module import Array, array_module
from lepton_mpi.ops.bf16 import round_to_bf16
from lepton_mpi.ops.native_path import runs_native

Precision = Literal["fp32", "bf16"]

# Below so many multiply-adds the call of oneDNN costs more than its units save.
_FEWEST_PRODUCTS = 1 << 19


def product(a: Array, b: Array, precision: Precision = "fp32", out: Array | None = None) -> Array:
    """Return the matrix product a b. Local.

    With "bf16" the operands are rounded to bfloat16 and the products are summed in fp32, which is what
    matrix units do (Kalamkar et al. 2019, "A study of BFLOAT16 for deep learning training"). Where the extension was built
    with oneDNN and the CPU has such units they do it; elsewhere the rounded operands are multiplied in fp32. The two differ
    by the order of the sums alone.

    Args:
        a: [..., M, K], float32 (or float64 in tests).
        b: [..., K, N].
        precision: "fp32" multiplies as given.
        out: [..., M, N], overwritten; its rows may lie apart. None: a new array.

    Returns:
        The product, [..., M, N] of the operands' dtype.

    Raises:
        ValueError: the shapes do not fit, or "bf16" and an operand that is not float32.
    """
    if precision == "bf16":
        if runs_native(a, b):
            multiply = native.bf16_product()
            if multiply is not None and a.shape[-1] == b.shape[-2] and a.size * b.shape[-1] >= _FEWEST_PRODUCTS:
                y = _product_on_units(multiply, a, b)
                if out is None:
                    return y
                out[...] = y
                return out
        a, b = round_to_bf16(a), round_to_bf16(b)
    product: Array = array_module(a).matmul(a, b, out=out)
    return product


def _product_on_units(multiply: native.Bf16Product, a: Array, b: Array) -> Array:
    """Return the product of float32 arrays on bfloat16 units."""
    leading = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    y = np.empty((*leading, a.shape[-2], b.shape[-1]), np.float32)
    y_batch = y.reshape(math.prod(leading), *y.shape[-2:])
    multiply(_as_batch(a, leading), _as_batch(b, leading), y_batch)
    return y


def _as_batch(x: Array, leading: tuple[int, ...]) -> Array:
    """Return [..., M, N] as [1, M, N] or, broadcast, as [batch, M, N] of contiguous rows or columns."""
    if min(x.strides[-2:]) != x.itemsize or min(x.strides) < 0:
        x = np.ascontiguousarray(x)
    if math.prod(x.shape[:-2]) == 1:
        return x.reshape(1, *x.shape[-2:])
    batch: Array = np.broadcast_to(x, (*leading, *x.shape[-2:])).reshape(-1, *x.shape[-2:])
    return batch
