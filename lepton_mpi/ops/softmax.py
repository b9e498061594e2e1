"""Softmax of attention scores under a causal limit and a key mask, in place.

Dims: B batch, H heads, Q queries, K keys.
"""

from __future__ import annotations

import numpy as np

from lepton_mpi import native
from lepton_mpi.ops.array_module import Array, array_module
from lepton_mpi.ops.checks import check_shape
from lepton_mpi.ops.native_path import runs_native


def softmax(scores: Array, *, scale: float = 1.0, first_query: int | None = None, key_mask: Array | None = None) -> None:
    """Replace scores by softmax(scale * scores) over the keys that each query may see; the others get 0. Local.

    A row without such a key becomes zeros. The largest score of a row is subtracted first, so that no exponential
    overflows. The native form computes nothing for keys beyond the causal limit.

    Args:
        scores: [B, H, Q, K], contiguous; the caller's, overwritten.
        scale: factor of the scores.
        first_query: query i sees keys 0 .. first_query + i; None: all keys.
        key_mask: bool [B, K], False where a key is not to be seen; None: all are.

    Raises:
        ValueError: the shapes do not fit, first_query is negative, the mask is not bool, or scores are not contiguous.
    """
    _check(scores, "scores", first_query)
    if key_mask is not None:
        check_shape("key_mask", key_mask, (scores.shape[0], scores.shape[3]))
        if key_mask.dtype != np.bool_:
            raise ValueError(f"key_mask: expected bool, received {key_mask.dtype}")
    if runs_native(scores):
        native.softmax(scores, None if key_mask is None else np.ascontiguousarray(key_mask), first_query, scale)
    else:
        softmax_reference(scores, scale=scale, first_query=first_query, key_mask=key_mask)


def softmax_reference(scores: Array, *, scale: float = 1.0, first_query: int | None = None, key_mask: Array | None = None) -> None:
    """Do what `softmax` does, in NumPy or CuPy and any float dtype. Local."""
    xp = array_module(scores)
    if scores.size == 0:
        return
    scores *= scale
    if first_query is not None:
        xp.copyto(scores, -np.inf, where=~_seen(scores, first_query))
    if key_mask is not None:
        xp.copyto(scores, -np.inf, where=~key_mask[:, None, None, :])
    largest = scores.max(axis=-1, keepdims=True)
    scores -= xp.where(xp.isneginf(largest), 0, largest)
    xp.exp(scores, out=scores)
    total = scores.sum(axis=-1, keepdims=True)
    scores /= xp.where(total == 0, 1, total)


def softmax_backward(dp: Array, p: Array, *, scale: float = 1.0, first_query: int | None = None) -> None:
    """Replace the gradient of the probabilities by that of the scores, scale * p * (dp - sum(dp * p)). Local.

    Args:
        dp: [B, H, Q, K], contiguous; the caller's, overwritten. What lies beyond the causal limit is not read.
        p: [B, H, Q, K], contiguous: what `softmax` made; read only.
        scale: as in the forward pass.
        first_query: as in the forward pass.

    Raises:
        ValueError: the shapes do not fit, first_query is negative, or an array is not contiguous.
    """
    _check(dp, "dp", first_query)
    check_shape("p", p, dp.shape)
    if not p.flags.c_contiguous:
        raise ValueError(f"p: expected a contiguous array, received strides {p.strides}")
    if runs_native(dp, p):
        native.softmax_backward(dp, p, first_query, scale)
    else:
        softmax_backward_reference(dp, p, scale=scale, first_query=first_query)


def softmax_backward_reference(dp: Array, p: Array, *, scale: float = 1.0, first_query: int | None = None) -> None:
    """Do what `softmax_backward` does, in NumPy or CuPy and any float dtype. Local."""
    if first_query is not None:
        array_module(dp).copyto(dp, 0, where=~_seen(dp, first_query))
    dp -= (dp * p).sum(axis=-1, keepdims=True)
    dp *= p
    dp *= scale


def _seen(scores: Array, first_query: int) -> Array:
    """Return bool [Q, K]: whether a query sees a key."""
    xp = array_module(scores)
    num_queries, num_keys = scores.shape[2:]
    seen: Array = xp.arange(num_keys) <= first_query + xp.arange(num_queries)[:, None]
    return seen


def _check(array: Array, name: str, first_query: int | None) -> None:
    check_shape(name, array, (None, None, None, None))
    if not array.flags.c_contiguous:
        raise ValueError(f"{name}: expected a contiguous array, received strides {array.strides}")
    if first_query is not None and first_query < 0:
        raise ValueError(f"first_query: expected 0 or more, received {first_query}")
