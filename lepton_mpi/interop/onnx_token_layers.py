"""What layers on ids and sequences are in ONNX. Lengths are read from the values, so that sequences may be shorter.

Dims: B samples, T positions, S = T keys, W features of the model, G key/value heads, r query heads for each, D features of a head,
P pairs of a sample, E features of an embedding.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lepton_mpi.interop.onnx_graph import OnnxGraph
from lepton_mpi.interop.onnx_layers import add_linear, export_layer
from lepton_mpi.nn.attention import Attention
from lepton_mpi.nn.embedding import Embedding, LearnedPositions
from lepton_mpi.nn.first_token import FirstToken
from lepton_mpi.nn.interaction import DotProduct, PairEmbedding
from lepton_mpi.nn.layer import Shapes
from lepton_mpi.nn.token_types import TokenTypes
from lepton_mpi.ops.rotary import rotary_tables

_END = np.iinfo(np.int64).max


@export_layer.register
def _embedding(layer: Embedding, graph: OnnxGraph, x: Any, shapes: Shapes) -> Any:
    return graph.add("Gather", layer.parameters[0].name, x, axis=0)


@export_layer.register
def _learned_positions(layer: LearnedPositions, graph: OnnxGraph, x: Any, shapes: Shapes) -> Any:
    start = graph.constant([layer.offset], np.int64)
    stop = graph.add("Add", start, _length(graph, x))
    return graph.add("Add", x, graph.add("Slice", layer.parameters[0].name, start, stop, graph.constant([0], np.int64)))


@export_layer.register
def _token_types(layer: TokenTypes, graph: OnnxGraph, x: Any, shapes: Shapes) -> Any:
    return graph.add("Add", x, graph.add("Gather", layer.parameters[0].name, graph.constant(0, np.int64), axis=0))


@export_layer.register
def _first_token(layer: FirstToken, graph: OnnxGraph, x: Any, shapes: Shapes) -> Any:
    return graph.add("Gather", x, graph.constant(0, np.int64), axis=1)


@export_layer.register
def _attention(layer: Attention, graph: OnnxGraph, x: Any, shapes: Shapes) -> Any:
    groups, repeats, features = layer.kv_heads, layer.num_heads // layer.kv_heads, layer.features
    weights = [spec.name for spec in layer.projections]
    biases = [None if spec is None else spec.name for spec in layer.biases]

    def heads(i: int, count: int) -> str:
        """Return projection i as [B, T, G, count, D]."""
        shape = graph.constant([0, 0, groups, count, features], np.int64)  # 0: as it comes
        return graph.add("Reshape", add_linear(graph, x, weights[i], biases[i], False), shape)

    q, k, v = heads(0, repeats), heads(1, 1), heads(2, 1)
    q, k, v = (graph.add("Transpose", part, perm=(0, 2, 3, 1, 4)) for part in (q, k, v))  # [B, G, r or 1, T, D]
    if layer.rotary is not None:
        tables = rotary_tables(shapes[0][0], features, layer.rotary.theta, layer.rotary.scaling)
        cosines, sines = (_up_to_length(graph, graph.constant(table), x) for table in tables)
        q, k = _turned(graph, q, features, cosines, sines), _turned(graph, k, features, cosines, sines)
    scores = graph.add("MatMul", q, graph.add("Transpose", k, perm=(0, 1, 2, 4, 3)))  # [B, G, r, T, S]
    scores = graph.add("Mul", scores, graph.constant(1 / math.sqrt(features)))
    y = graph.add("MatMul", _probabilities(graph, scores, _causal_mask(graph, x) if layer.causal else None), v)
    y = graph.add("Transpose", y, perm=(0, 3, 1, 2, 4))
    y = graph.add("Reshape", y, graph.constant([0, 0, layer.num_heads * features], np.int64))
    return add_linear(graph, y, weights[3], biases[3], False)


@export_layer.register
def _pair_embedding(layer: PairEmbedding, graph: OnnxGraph, x: Any, shapes: Shapes) -> Any:
    names = [spec.name for spec in layer.parameters]
    ids = (_columns(graph, x, 0, 1), _columns(graph, x, 1, _END))
    user, item = (graph.add("Gather", table, columns, axis=0) for table, columns in zip(names[:2], ids, strict=True))
    parts = [graph.add("Expand", user, graph.add("Shape", item)), item]
    if layer.biases:
        parts.append(graph.add("Add", *(graph.add("Gather", t, c, axis=0) for t, c in zip(names[2:], ids, strict=True))))
    return graph.add("Concat", *parts, axis=-1)


@export_layer.register
def _dot_product(layer: DotProduct, graph: OnnxGraph, x: Any, shapes: Shapes) -> Any:
    size = layer.num_features
    user, item, *biases = graph.split(x, (size, size, 1) if layer.biases else (size, size))
    last = graph.constant([-1], np.int64)
    score = graph.add("ReduceSum", graph.add("Mul", user, item), last, keepdims=0)
    for bias in biases:
        score = graph.add("Add", score, graph.add("Squeeze", bias, last))
    return graph.add("Add", score, layer.parameters[0].name)


def _length(graph: OnnxGraph, x: str) -> str:
    """Return T of [B, T, ...], int64 [1]."""
    return graph.add("Shape", x, start=1, end=2)


def _up_to_length(graph: OnnxGraph, table: str, x: str) -> str:
    """Return the first T rows of a table."""
    zero = graph.constant([0], np.int64)
    return graph.add("Slice", table, zero, _length(graph, x), zero)


def _columns(graph: OnnxGraph, x: str, start: int, stop: int) -> str:
    """Return a range of the columns of [B, T]."""
    return graph.add("Slice", x, *(graph.constant([number], np.int64) for number in (start, stop, 1)))


def _turned(graph: OnnxGraph, x: str, features: int, cosines: str, sines: str) -> str:
    """Return [..., T, D] with its two halves turned by tables [T, D / 2]; see `ops.rotary`."""
    first, second = graph.split(x, (features // 2, features // 2))
    turned_first = graph.add("Sub", graph.add("Mul", first, cosines), graph.add("Mul", second, sines))
    turned_second = graph.add("Add", graph.add("Mul", second, cosines), graph.add("Mul", first, sines))
    return graph.add("Concat", turned_first, turned_second, axis=-1)


def _causal_mask(graph: OnnxGraph, x: str) -> str:
    """Return bool [T, S]: whether a query sees a key."""
    zero, one = graph.constant(0, np.int64), graph.constant(1, np.int64)
    positions = graph.add("Range", zero, graph.add("Squeeze", _length(graph, x)), one)
    return graph.add("GreaterOrEqual", graph.add("Unsqueeze", positions, graph.constant([1], np.int64)), positions)


def _probabilities(graph: OnnxGraph, scores: str, causal: str | None) -> str:
    """Return the softmax of scores [B, G, r, T, S] over the keys that may be seen; zeros where there are none."""
    seen = causal
    if graph.key_mask is not None:
        keys = graph.add("Unsqueeze", graph.key_mask, graph.constant([1, 2, 3], np.int64))
        seen = keys if causal is None else graph.add("And", keys, causal)
    if seen is None:
        return graph.add("Softmax", scores, axis=-1)
    lowest = graph.constant(np.finfo(np.float32).min)
    probabilities = graph.add("Softmax", graph.add("Where", seen, scores, lowest), axis=-1)
    # Only with a mask can a query have no key left; the softmax of equal scores is not zero then.
    return probabilities if graph.key_mask is None else graph.add("Where", seen, probabilities, graph.constant(0.0))
