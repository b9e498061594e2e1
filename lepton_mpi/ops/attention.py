"""Scaled dot-product attention (Vaswani et al. 2017, eq. 1) with grouped keys (Ainslie et al. 2023, "GQA").

Dims: B batch, T positions, H query heads, G key/value heads, r = H / G query heads for each, D features of a head,
S queries of a block, K keys that a block sees.

The work is cut into blocks of a few samples and S queries, whose scores stay in the cache between the products and the
softmax. With a causal limit a block computes its rectangle of scores up to its last query; the r heads of a group are
stacked as r * S rows, so that one product serves them all and sums over them in the backward pass. Probabilities of long
sequences are not kept but computed again in the backward pass (Dao et al. 2022, "FlashAttention", section 3.1), so that
memory grows with T alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from lepton_mpi.ops.array_module import Array, array_module
from lepton_mpi.ops.checks import check_shape
from lepton_mpi.ops.dropout import dropout as drop
from lepton_mpi.ops.dropout import dropout_backward
from lepton_mpi.ops.product import Precision, product
from lepton_mpi.ops.softmax import softmax, softmax_backward

# Queries of a block: smaller ones waste less on the causal limit, but make smaller products.
_BLOCK_QUERIES = 64
# Scores of a block that samples are added up to: half a MiB of float32.
_BLOCK_SCORES = 1 << 17
# Probabilities are kept for the backward pass while T <= 8 D: they are then no more than eight arrays like q.
_KEPT_PER_FEATURE = 8


@dataclass(frozen=True)
class ProbabilityDropout:
    """Dropout of attention probabilities, whose elements are numbered by sample, global head, query and key.

    Attributes:
        rate: share that is dropped, in [0, 1).
        key: key of the random numbers.
        step: number of the training step.
        first_row: place of the first sample in the global batch.
        num_heads: heads of all shards together.
        first_head: global number of the first head here.
    """

    rate: float
    key: int
    step: int
    first_row: int
    num_heads: int
    first_head: int = 0


@dataclass(frozen=True)
class _Options:
    """What `attention` was called with."""

    causal: bool
    key_mask: Array | None
    scale: float
    precision: Precision
    dropout: ProbabilityDropout | None


class _Probabilities(NamedTuple):
    """Probabilities of a block."""

    p: Array  # softmax [B, H, S, K]
    weights: Array  # p after dropout
    kept: Any  # of dropout, for its backward pass


class _Block(NamedTuple):
    """Queries of some samples, and the keys from 0 on that they see."""

    rows: slice
    queries: slice
    keys: slice


class _Saved(NamedTuple):
    """What the backward pass needs: the blocks of each chunk of samples, with None where p is to be computed again."""

    options: _Options
    chunks: list[list[tuple[_Block, _Probabilities | None]]]


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool,
    key_mask: Array | None = None,
    scale: float,
    precision: Precision = "fp32",
    dropout: ProbabilityDropout | None = None,
) -> tuple[Array, Any]:
    """Return softmax(scale * q k^T) v for every head; query head h uses key head h // r. Local.

    Args:
        q: [B, T, H, D]; B and T may be 0.
        k: [B, T, G, D], of the same dtype; H = r * G.
        v: [B, T, G, D].
        causal: whether position t sees keys 0 .. t only.
        key_mask: bool [B, T], False at keys without weight, such as padding. A row with no key left gives zeros.
        scale: factor of the scores, usually 1 / sqrt(D).
        precision: see `product`.
        dropout: dropout of the probabilities; None: none.

    Returns:
        A new array [B, T, H, D], and what the backward pass needs.

    Raises:
        ValueError: the shapes do not fit.
    """
    check_shape("q", q, (None, None, None, None))
    num_samples, length, num_heads, width = q.shape
    check_shape("k", k, (num_samples, length, None, width))
    check_shape("v", v, k.shape)
    groups = k.shape[2]
    if groups == 0 or num_heads % groups != 0:
        raise ValueError(f"q: expected a multiple of the {groups} heads of k, received {num_heads}")
    xp = array_module(q)
    if key_mask is not None:
        key_mask = xp.asarray(key_mask)
        check_shape("key_mask", key_mask, (num_samples, length))
    y = xp.empty(q.shape, q.dtype)
    options = _Options(causal, key_mask, scale, precision, dropout)
    keep = length <= _KEPT_PER_FEATURE * width
    saved = _Saved(options, [])
    for rows in _chunks(q.shape):
        blocks: list[tuple[_Block, _Probabilities | None]] = []
        # A contiguous copy, since all blocks of queries use it and BLAS multiplies fastest with this layout.
        k_BGDT = xp.ascontiguousarray(k[rows].transpose(0, 2, 3, 1))
        v_BGTD = v[rows].transpose(0, 2, 1, 3)
        for block in _blocks(rows, length, options):
            q_BGSD = _stack(q[rows, block.queries], groups)
            found = _probabilities(q_BGSD, k_BGDT, block, options)
            weights = found.weights.reshape(*q_BGSD.shape[:3], block.keys.stop)
            _unstack(product(weights, v_BGTD[:, :, block.keys], precision), y[rows, block.queries])
            blocks.append((block, found if keep else None))
        saved.chunks.append(blocks)
    return y, saved


def attention_backward(dy: Array, q: Array, k: Array, v: Array, saved: Any) -> tuple[Array, Array, Array]:
    """Return the gradients of q, k and v. Local.

    Args:
        dy: [B, T, H, D], gradient of the output.
        q, k, v: as in the forward pass.
        saved: second result of `attention`.

    Returns:
        New arrays dq [B, T, H, D], dk [B, T, G, D], dv [B, T, G, D].

    Raises:
        ValueError: the shapes do not fit.
    """
    check_shape("dy", dy, q.shape)
    xp = array_module(q)
    dq, dk, dv = xp.empty(q.shape, q.dtype), xp.empty(k.shape, k.dtype), xp.empty(v.shape, v.dtype)
    for blocks in saved.chunks:
        rows = blocks[0][0].rows
        _chunk_backward(dy[rows], q[rows], k[rows], v[rows], dq[rows], dk[rows], dv[rows], blocks, saved.options)
    return dq, dk, dv


def _chunk_backward(
    dy: Array,
    q: Array,
    k: Array,
    v: Array,
    dq: Array,
    dk: Array,
    dv: Array,
    blocks: list[tuple[_Block, _Probabilities | None]],
    options: _Options,
) -> None:
    """Write dq, dk and dv of a chunk of samples; all arrays are its rows alone."""
    xp, groups, precision, dropout = array_module(q), k.shape[2], options.precision, options.dropout
    k_BGTD = k.transpose(0, 2, 1, 3)
    k_BGDT, v_BGDT = (xp.ascontiguousarray(array.transpose(0, 2, 3, 1)) for array in (k, v))
    dk_BGTD: Any = None
    dv_BGTD: Any = None
    for block, found in reversed(blocks):  # the last block sees all keys
        queries, keys = block.queries, block.keys
        q_BGSD, dy_BGSD = _stack(q[:, queries], groups), _stack(dy[:, queries], groups)
        p, weights, kept = found or _probabilities(q_BGSD, k_BGDT, block, options)
        stacked = (*q_BGSD.shape[:3], keys.stop)
        dv_BGTD = _add(dv_BGTD, keys, product(weights.reshape(stacked).swapaxes(-1, -2), dy_BGSD, precision))
        dp = product(dy_BGSD, v_BGDT[..., keys], precision).reshape(p.shape)
        if dropout is not None:
            dp = dropout_backward(dp, kept, dropout.rate)
        softmax_backward(dp, p, scale=options.scale, first_query=queries.start if options.causal else None)
        ds = dp.reshape(stacked)
        _unstack(product(ds, k_BGTD[:, :, keys], precision), dq[:, queries])
        dk_BGTD = _add(dk_BGTD, keys, product(ds.swapaxes(-1, -2), q_BGSD, precision))
    dk[...], dv[...] = dk_BGTD.transpose(0, 2, 1, 3), dv_BGTD.transpose(0, 2, 1, 3)


def _chunks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield ranges of the samples of q [B, T, H, D]; none if it is empty."""
    num_samples, length, num_heads, _ = shape
    if length:
        size = max(1, _BLOCK_SCORES // max(1, num_heads * min(length, _BLOCK_QUERIES) * length))
        for start in range(0, num_samples, size):
            yield slice(start, min(start + size, num_samples))


def _blocks(rows: slice, length: int, options: _Options) -> Iterator[_Block]:
    """Yield the blocks of a chunk; with dropout only one, since elements are numbered by whole heads."""
    size = length if options.dropout is not None else _BLOCK_QUERIES
    for start in range(0, length, size):
        stop = min(start + size, length)
        yield _Block(rows, slice(start, stop), slice(0, stop if options.causal else length))


def _add(total: Array | None, keys: slice, part: Array) -> Array:
    """Add a block's part to the first keys of a chunk's gradient [B, G, T, D]; the first part becomes the total."""
    if total is None:
        return part
    total[:, :, keys] += part
    return total


def _stack(x: Array, groups: int) -> Array:
    """Return [B, S, H, D] as [B, G, r * S, D]: a view where r is 1."""
    num_samples, num_queries, num_heads, width = x.shape
    apart = x.reshape(num_samples, num_queries, groups, num_heads // groups, width).transpose(0, 2, 3, 1, 4)
    return apart.reshape(num_samples, groups, num_heads // groups * num_queries, width)


def _unstack(stacked: Array, x: Array) -> None:
    """Write [B, G, r * S, D] into x [B, S, H, D]."""
    num_samples, num_queries, num_heads, width = x.shape
    x[...] = stacked.reshape(num_samples, num_heads, num_queries, width).transpose(0, 2, 1, 3)


def _probabilities(q_BGSD: Array, k_BGDT: Array, block: _Block, options: _Options) -> _Probabilities:
    """Return the probabilities of a block, the same bits each time."""
    rows, queries, keys = block
    scores = product(q_BGSD, k_BGDT[..., keys], options.precision)
    num_queries = queries.stop - queries.start
    p = scores.reshape(len(scores), -1, num_queries, keys.stop)
    mask = None if options.key_mask is None else options.key_mask[rows, keys]
    softmax(p, scale=options.scale, first_query=queries.start if options.causal else None, key_mask=mask)
    dropout = options.dropout
    if dropout is None:
        return _Probabilities(p, p, None)
    head = num_queries * keys.stop
    weights, kept = drop(
        p,
        dropout.rate,
        dropout.key,
        dropout.step,
        dropout.first_row + rows.start,
        row_size=dropout.num_heads * head,
        row_start=dropout.first_head * head,
    )
    return _Probabilities(p, weights, kept)
