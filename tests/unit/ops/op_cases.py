"""Every operation as a function of arrays alone, to run on one array library and on another.

A case is (function, shapes or arrays); float32 arrays are drawn for shapes. Arrays that an operation writes to are part of
the results. tests/gpu runs the same cases.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from lepton_mpi.ops import batch_norm as bn
from lepton_mpi.ops import pooling
from lepton_mpi.ops.array_module import array_module
from lepton_mpi.ops.attention import ProbabilityDropout, attention, attention_backward
from lepton_mpi.ops.bf16 import round_to_bf16
from lepton_mpi.ops.bias_relu import bias_relu
from lepton_mpi.ops.bpr import bpr, bpr_backward
from lepton_mpi.ops.conv2d import conv2d, conv2d_backward_input, conv2d_backward_weight
from lepton_mpi.ops.dropout import dropout, dropout_backward
from lepton_mpi.ops.embedding import embedding, embedding_backward
from lepton_mpi.ops.gelu import gelu, gelu_backward, gelu_with_slope
from lepton_mpi.ops.layer_norm import layer_norm, layer_norm_backward
from lepton_mpi.ops.linear import linear, linear_backward_input, linear_backward_weight
from lepton_mpi.ops.product import product
from lepton_mpi.ops.relu import relu, relu_backward
from lepton_mpi.ops.rms_norm import rms_norm, rms_norm_backward
from lepton_mpi.ops.rotary import rotary, rotary_backward, rotary_tables
from lepton_mpi.ops.sigmoid_cross_entropy import sigmoid_cross_entropy, sigmoid_cross_entropy_backward
from lepton_mpi.ops.silu import silu, silu_backward, silu_with_slope
from lepton_mpi.ops.softmax import softmax, softmax_backward
from lepton_mpi.ops.softmax_cross_entropy import softmax_cross_entropy, softmax_cross_entropy_with_gradient
from lepton_mpi.ops.squared_error import squared_error, squared_error_backward
from lepton_mpi.ops.swiglu import swiglu, swiglu_backward
from lepton_mpi.ops.tanh import tanh, tanh_backward
from lepton_mpi.ops.upsample import upsample_nearest, upsample_nearest_backward

RANDOM = np.random.default_rng(5)


def copies(*arrays: Any) -> list[Any]:
    return [array.copy() for array in arrays]


def run_linear(x: Any, W: Any, b: Any, dy: Any) -> Any:
    dW, db = copies(W, b)
    linear_backward_weight(dy, x, dW, db)
    return linear(x, W, b), linear_backward_input(dy, W), dW, db


def run_bias_relu(y: Any, b: Any) -> Any:
    (y,) = copies(y)
    bias_relu(y, b)
    return y, relu(y), relu_backward(y, y)


def run_conv2d(**options: Any) -> Callable[..., Any]:
    def run(x: Any, W: Any, b: Any) -> Any:
        y = conv2d(x, W, b, **options)
        dW, db = copies(W, b)
        conv2d_backward_weight(y, x, dW, db, **options)
        return y, conv2d_backward_input(y, W, x.shape, **options), dW, db

    return run


def run_max_pool(x: Any) -> Any:
    options = {"kernel": (3, 2), "stride": (2, 2), "padding": (1, 1)}
    y, places = pooling.max_pool2d(x, **options)
    return y, places, pooling.max_pool2d_backward(y, places, x.shape, **options)


def run_mean_pools(x: Any) -> Any:
    options = {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 1)}
    y, mean = pooling.avg_pool2d(x, **options), pooling.global_avg_pool(x)
    back = pooling.avg_pool2d_backward(y, x.shape, **options)
    return y, back, mean, pooling.global_avg_pool_backward(mean, x.shape)


def run_upsample(x: Any) -> Any:
    y = upsample_nearest(x, 3)
    return y, upsample_nearest_backward(y, 3)


def run_batch_norm(x: Any, weight: Any, bias: Any, dy: Any) -> Any:
    xp, moments = array_module(x), bn.channel_moments(x)
    inverse = moments.deviation_inverse(1e-5)
    counts = xp.asarray([moments.count, 0, moments.count], dtype=np.float64)
    merged = bn.merge_moments(counts, *(xp.stack([array] * 3) for array in (moments.mean, moments.squares)))
    y = bn.batch_norm(x, moments.mean, inverse, weight, bias)
    sums = bn.batch_norm_sums(dy, x, moments.mean, inverse)
    dx = bn.batch_norm_backward_input(dy, x, moments.mean, inverse, weight, *sums, moments.count)
    return y, *sums, dx, moments.mean, moments.squares, merged.count, merged.mean, merged.squares


def run_layer_norm(x: Any, weight: Any, bias: Any, dy: Any) -> Any:
    y, mean, rstd = layer_norm(x, weight, bias, 1e-5)
    return y, mean, rstd, *layer_norm_backward(dy, x, weight, mean, rstd)


def run_rms_norm(x: Any, weight: Any, dy: Any) -> Any:
    y, rstd = rms_norm(x, weight, 1e-6)
    return y, rstd, *rms_norm_backward(dy, x, weight, rstd)


def run_gelu(approximate: bool) -> Callable[..., Any]:
    return lambda x: (gelu(x, approximate), *gelu_with_slope(x, approximate), gelu_backward(x, x))


def run_dropout(x: Any) -> Any:
    y, mask = dropout(x, 0.3, 12345, 7, 11, 40, 3)
    return y, mask, dropout_backward(y, mask, 0.3)


def run_embedding(first: int, padding: int = -1) -> Callable[..., Any]:
    def run(ids: Any, W: Any) -> Any:
        y, (dW,) = embedding(ids, W, first), copies(W)
        embedding_backward(y, ids, dW, first)
        return y, dW

    return run


def run_rotary(x: Any) -> Any:
    tables = [array_module(x).asarray(table) for table in rotary_tables(x.shape[1], x.shape[3])]
    return rotary(x, *tables), rotary_backward(x, *tables)


def run_softmax(first_query: int | None, masked: bool) -> Callable[..., Any]:
    def run(scores: Any, dp: Any, mask: Any) -> Any:
        p, dp = copies(scores, dp)
        softmax(p, scale=0.3, first_query=first_query, key_mask=mask if masked else None)
        softmax_backward(dp, p, scale=0.3, first_query=first_query)
        return p, dp

    return run


def run_attention(masked: bool = False, **options: Any) -> Callable[..., Any]:
    def run(q: Any, k: Any, v: Any, mask: Any) -> Any:
        y, saved = attention(q, k, v, key_mask=mask if masked else None, scale=1 / math.sqrt(q.shape[3]), **options)
        return y, *attention_backward(y, q, k, v, saved)

    return run


def run_cross_entropy(smoothing: float, weighted: bool) -> Callable[..., Any]:
    def run(logits: Any, labels: Any, weights: Any) -> Any:
        weights = abs(weights) if weighted else None
        alone = softmax_cross_entropy(logits, labels, weights, smoothing)
        sums, gradient = softmax_cross_entropy_with_gradient(logits, labels, 0.25, weights, smoothing)
        return *vars(alone).values(), *vars(sums).values(), gradient

    return run


def run_sigmoid(logits: Any, targets: Any, weights: Any) -> Any:
    weighted = sigmoid_cross_entropy_backward(logits, targets, 0.25, abs(weights))
    return sigmoid_cross_entropy(logits, targets), sigmoid_cross_entropy(logits, targets, abs(weights)), weighted


def labels(*shape: int) -> np.ndarray:
    drawn = RANDOM.integers(0, 7, shape)
    drawn[..., 1::3] = -100
    return drawn


def attention_arrays(samples: int, length: int, heads: int, groups: int) -> list[Any]:
    mask = np.ones((samples, length), bool)
    mask[:, length // 2 :] = False
    mask[1:2] = False
    return [(samples, length, heads, 4), (samples, length, groups, 4), (samples, length, groups, 4), mask]


HALF_DROPPED = ProbabilityDropout(0.5, 99, 3, first_row=2, num_heads=6, first_head=1)
IMAGE = (3, 7, 6, 4)
SCORES = [(2, 3, 4, 6), (2, 3, 4, 6), np.arange(12).reshape(2, 6) % 3 != 1]
IDS = RANDOM.integers(0, 9, (3, 5))

CASES: dict[str, tuple[Callable[..., Any], list[Any]]] = {
    "linear": (run_linear, [(3, 5), (4, 5), (4,), (3, 4)]),
    "linear, no rows": (run_linear, [(0, 5), (4, 5), (4,), (0, 4)]),
    "product in bf16": (lambda a, b: product(a, b, "bf16"), [(2, 1, 3, 5), (4, 5, 7)]),
    "round_to_bf16": (lambda x: (round_to_bf16(x), round_to_bf16(x.T)), [(17, 5)]),
    "bias_relu": (run_bias_relu, [(3, 5), (5,)]),
    "conv2d": (run_conv2d(stride=(2, 1), padding=(1, 2), dilation=(1, 2)), [IMAGE, (5, 4, 3, 2), (5,)]),
    "conv2d in bf16": (run_conv2d(padding=(1, 1), precision="bf16"), [IMAGE, (5, 4, 3, 3), (5,)]),
    "conv2d, pointwise": (run_conv2d(), [IMAGE, (5, 4, 1, 1), (5,)]),
    "conv2d, groups": (run_conv2d(groups=2), [IMAGE, (6, 2, 3, 3), (6,)]),
    "conv2d, no images": (run_conv2d(padding=(1, 1)), [(0, 7, 6, 4), (5, 4, 3, 3), (5,)]),
    "depthwise": (run_conv2d(groups=4, padding=(1, 1), stride=(2, 2)), [IMAGE, (4, 1, 3, 3), (4,)]),
    "max_pool2d": (run_max_pool, [IMAGE]),
    "max_pool2d, no images": (run_max_pool, [(0, 7, 6, 4)]),
    "mean pools": (run_mean_pools, [IMAGE]),
    "upsample": (run_upsample, [IMAGE]),
    "batch_norm": (run_batch_norm, [IMAGE, (4,), (4,), IMAGE]),
    "batch_norm, no rows": (run_batch_norm, [(0, 4), (4,), (4,), (0, 4)]),
    "layer_norm": (run_layer_norm, [(2, 3, 5), (5,), (5,), (2, 3, 5)]),
    "layer_norm, no rows": (run_layer_norm, [(0, 5), (5,), (5,), (0, 5)]),
    "rms_norm": (run_rms_norm, [(2, 3, 5), (5,), (2, 3, 5)]),
    "gelu": (run_gelu(False), [(5, 7)]),
    "gelu with tanh": (run_gelu(True), [(5, 7)]),
    "silu": (lambda x: (silu(x), *silu_with_slope(x), silu_backward(x, x)), [(5, 7)]),
    "swiglu": (lambda dy, a, b: (swiglu(a, b), *swiglu_backward(dy, a, b)), [(5, 7)] * 3),
    "tanh": (lambda x: (tanh(x), tanh_backward(x, x)), [(5, 7)]),
    "dropout": (run_dropout, [(4, 5, 7)]),
    "embedding": (run_embedding(0), [IDS, (9, 5)]),
    "embedding, part of the rows": (run_embedding(3), [IDS, (4, 5)]),
    "embedding, no ids": (run_embedding(0), [IDS[:0], (9, 5)]),
    "rotary": (run_rotary, [(2, 5, 3, 6)]),
    "softmax": (run_softmax(None, False), SCORES),
    "softmax, causal and masked": (run_softmax(1, True), SCORES),
    "attention": (run_attention(causal=False), attention_arrays(2, 5, 2, 2)),
    "attention in bf16": (run_attention(causal=True, precision="bf16"), attention_arrays(2, 5, 2, 2)),
    "attention, causal groups and mask": (run_attention(True, causal=True), attention_arrays(3, 7, 4, 2)),
    "attention, long": (run_attention(True, causal=True), attention_arrays(2, 71, 2, 1)),
    "attention with dropout": (run_attention(causal=True, dropout=HALF_DROPPED), attention_arrays(2, 5, 4, 2)),
    "attention, no samples": (run_attention(True, causal=True), attention_arrays(0, 5, 2, 2)),
    "softmax_cross_entropy": (run_cross_entropy(0.0, False), [(6, 7), labels(6), (7,)]),
    "softmax_cross_entropy, smooth and weighted": (run_cross_entropy(0.1, True), [(2, 6, 7), labels(2, 6), (7,)]),
    "softmax_cross_entropy, no labels": (run_cross_entropy(0.1, True), [(0, 7), labels(0), (7,)]),
    "sigmoid_cross_entropy": (run_sigmoid, [(5, 3), RANDOM.random((5, 3), np.float32), (3,)]),
    "squared_error": (lambda x, t: (squared_error(x, t), squared_error_backward(x, t, 0.25)), [(5, 3), (5, 3)]),
    "bpr": (lambda scores: (bpr(scores), bpr_backward(scores, 0.25)), [(5, 2)]),
}


def make_arrays(name: str) -> list[np.ndarray]:
    """Return the arrays of a case."""
    random = np.random.default_rng(1)
    return [
        random.standard_normal(given).astype(np.float32) if isinstance(given, tuple) else given.copy() for given in CASES[name][1]
    ]
