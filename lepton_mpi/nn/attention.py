"""Multi-head self-attention, whole or with its heads divided over shards.

Dims: B samples, T positions, R = B * T rows, W features of the model, H query heads, G key/value heads, D features of a
head; heads are those of this shard.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.errors import ConfigError
from lepton_mpi.nn.chunked_linear import (
    Chunks,
    columns_backward_input,
    columns_backward_weight,
    linear_by_columns,
    linear_by_rows,
    rows_backward_input,
    rows_backward_weight,
)
from lepton_mpi.nn.initial import Initial, lecun_uniform
from lepton_mpi.nn.layer import Layer, Shapes, require_shape
from lepton_mpi.nn.module import Context, Module
from lepton_mpi.nn.parameter import Parameter, ParameterSpec
from lepton_mpi.nn.place import Place
from lepton_mpi.ops.array_module import array_module
from lepton_mpi.ops.attention import ProbabilityDropout, attention, attention_backward
from lepton_mpi.ops.rotary import Llama3Scaling, rotary, rotary_backward, rotary_tables
from lepton_mpi.runtime.random import random_key


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding of queries and keys.

    Attributes:
        theta: base of the wavelengths.
        scaling: how frequencies are stretched; None: not.
    """

    theta: float = 10000.0
    scaling: Llama3Scaling | None = None


@dataclass(frozen=True)
class Attention(Layer):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2), keys grouped if there are fewer of them.

    Shards divide the key/value heads, each with the query heads of its group; inputs and outputs are whole.

    Attributes:
        width: features of the model, W.
        num_heads: query heads.
        num_kv_heads: key/value heads, a divisor of num_heads; 0: as many.
        head_dim: features of a head, D; 0: width / num_heads.
        causal: whether a position sees only those up to itself.
        bias: whether queries, keys and values have one.
        out_bias: whether the output has one.
        rotary: rotary position embedding; None: positions are told otherwise.
        dropout: rate of dropout of the probabilities in training.
        q_name, k_name, v_name, out_name: names of the projections' parameters, after the layer's.
        initial: law of the initial weights of queries, keys and values; None: LeCun-uniform.
        out_initial: likewise of the output.
    """

    width: int
    num_heads: int
    num_kv_heads: int = 0
    head_dim: int = 0
    causal: bool = False
    bias: bool = True
    out_bias: bool = True
    rotary: Rotary | None = None
    dropout: float = 0.0
    q_name: str = "q_proj"
    k_name: str = "k_proj"
    v_name: str = "v_proj"
    out_name: str = "o_proj"
    initial: Initial | None = None
    out_initial: Initial | None = None

    def __post_init__(self) -> None:
        """Refuse heads that do not divide.

        Raises:
            ConfigError: they do not, or the rotary embedding cannot pair the features of a head.
        """
        if self.num_heads < 1 or (self.head_dim == 0 and self.width % self.num_heads):
            raise ConfigError(
                f"model.num_heads: layer {self.name} cannot divide its {self.width} features into {self.num_heads} heads: "
                "choose a divisor of the width, or set head_dim"
            )
        if self.num_kv_heads < 0 or self.num_heads % self.kv_heads:
            raise ConfigError(
                f"model.num_kv_heads: layer {self.name} cannot divide {self.num_heads} query heads into {self.num_kv_heads} "
                "groups: choose a divisor of model.num_heads"
            )
        if self.rotary is not None and self.features % 2:
            raise ConfigError(
                f"head_dim: the rotary embedding of layer {self.name} turns pairs of features, but a head has "
                f"{self.features}: choose an even number"
            )

    @property
    def features(self) -> int:
        """Features of a head."""
        return self.head_dim or self.width // self.num_heads

    @property
    def kv_heads(self) -> int:
        """Key/value heads of all shards."""
        return self.num_kv_heads or self.num_heads

    @property
    def query_unit(self) -> int:
        """Features of the query heads of a group, which stay together."""
        return self.features * (self.num_heads // self.kv_heads)

    @property
    def projections(self) -> tuple[ParameterSpec, ...]:
        """Weights of queries [H D, W], keys [G D, W], values [G D, W] and output [W, H D]."""
        initial = self.initial or lecun_uniform(self.width)
        q, kv = self.num_heads * self.features, self.kv_heads * self.features
        return (
            ParameterSpec(f"{self.name}.{self.q_name}.weight", (q, self.width), 0, self.query_unit, initial),
            ParameterSpec(f"{self.name}.{self.k_name}.weight", (kv, self.width), 0, self.features, initial),
            ParameterSpec(f"{self.name}.{self.v_name}.weight", (kv, self.width), 0, self.features, initial),
            ParameterSpec(
                f"{self.name}.{self.out_name}.weight", (self.width, q), 1, self.query_unit, self.out_initial or lecun_uniform(q)
            ),
        )

    @property
    def biases(self) -> tuple[ParameterSpec | None, ...]:
        """Biases of the projections, zeros; that of the output is whole on every shard, since it is added after the sum."""
        q, k, v, out = self.projections
        divided = [
            ParameterSpec(w.name.removesuffix("weight") + "bias", w.shape[:1], 0, w.split_unit, decay=False) for w in (q, k, v)
        ]
        whole = ParameterSpec(out.name.removesuffix("weight") + "bias", out.shape[:1], decay=False)
        return (*(divided if self.bias else [None] * 3), whole if self.out_bias else None)

    @property
    def parameters(self) -> tuple[ParameterSpec, ...]:
        """Weight and, if there is one, bias of each projection."""
        pairs = zip(self.projections, self.biases, strict=True)
        return tuple(spec for pair in pairs for spec in pair if spec is not None)

    def output(self, shapes: Shapes) -> Shapes:
        """Return [T, W] for [T, W]."""
        return (require_shape(self, shapes, (None, self.width)),)

    def cost(self, shapes: Shapes) -> int:
        """Return the projections of T rows, and 2 T T H D for scores and values."""
        length = shapes[0][0]
        return length * sum(math.prod(w.shape) for w in self.projections) + 2 * length**2 * self.num_heads * self.features

    def build(self, parameters: Mapping[str, Parameter], place: Place) -> AttentionModule:
        """Return the layer at work."""
        return AttentionModule(self, parameters, place)


class AttentionModule(Module):
    """y = sum over shards of attention(rotary(q), rotary(k), v) Wo^T, plus bias; q, k, v are linear maps of x."""

    def __init__(self, layer: Attention, parameters: Mapping[str, Parameter], place: Place) -> None:
        """Make the layer on this shard's blocks of its parameters."""
        self.q, self.k, self.v, self.out = (parameters[spec.name] for spec in layer.projections)
        self.q_bias, self.k_bias, self.v_bias, self.out_bias = (
            None if spec is None else parameters[spec.name] for spec in layer.biases
        )
        self._layer = layer
        queries, keys = layer.num_heads * layer.features, layer.kv_heads * layer.features
        self._enter, self._reduce = place.replicate(queries, layer.query_unit), place.sum(queries, layer.query_unit)
        self._query_chunks, self._key_chunks = place.slices(queries, layer.query_unit), place.slices(keys, layer.features)
        self._precision = place.precision
        self._first_head = place.share(queries, layer.query_unit)[0] // layer.features
        self._key = random_key(place.seed, "dropout", layer.name)

    def forward(self, x: Any, context: Context) -> tuple[Any, Any]:
        """Return y [B, T, W] for x [B, T, W]."""
        entered, enter, reduce = x.shape, self._enter.of(context.num_positions), self._reduce.of(context.num_positions)
        x = enter.forward(x)
        x_RW = x.reshape(-1, self._layer.width)
        q, k, v = (
            linear_by_columns(x_RW, weight.value, chunks, None if bias is None else bias.value, precision=self._precision).reshape(
                *x.shape[:2], *self._heads(weight)
            )
            for weight, bias, chunks in self._inputs()
        )
        tables = self._tables(q)
        if tables is not None:
            q, k = rotary(q, *tables), rotary(k, *tables)
        heads, saved = attention(
            q,
            k,
            v,
            causal=self._layer.causal,
            key_mask=context.key_mask,
            scale=1 / math.sqrt(self._layer.features),
            precision=self._precision,
            dropout=self._dropout(context),
        )
        heads_RF = heads.reshape(len(x_RW), self.out.value.shape[1])
        parts = linear_by_rows(heads_RF, self.out.value, self._query_chunks, precision=self._precision)
        y = reduce.forward([part.reshape(x.shape) for part in parts])
        if self.out_bias is not None:
            y += self.out_bias.value
        return y.reshape(entered), (x_RW, q, k, v, heads_RF, saved, x.shape, (enter, reduce))

    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        """Return dx [B, T, W] for dy [B, T, W]."""
        x_RW, q, k, v, heads_RF, kept, x_shape, (enter, reduce) = saved
        dy_RW = reduce.adjoint(dy).reshape(x_RW.shape)
        dheads = rows_backward_input(dy_RW, self.out.value, self._query_chunks, precision=self._precision).reshape(q.shape)
        dq, dk, dv = attention_backward(dheads, q, k, v, kept)
        tables = self._tables(q)
        if tables is not None:
            dq, dk = rotary_backward(dq, *tables), rotary_backward(dk, *tables)
        gradients = tuple(
            d.reshape(len(x_RW), len(weight.value)) for d, (weight, *_) in zip((dq, dk, dv), self._inputs(), strict=True)
        )
        pending = (x_RW, gradients, heads_RF, dy_RW)
        if not want_dx:
            return None, pending
        parts, *others = (
            columns_backward_input(d, weight.value, chunks, precision=self._precision)
            for d, (weight, _, chunks) in zip(gradients, self._inputs(), strict=True)
        )
        for other in others:
            for part, more in zip(parts, other, strict=True):
                part += more
        return enter.adjoint([part.reshape(x_shape) for part in parts]).reshape(dy.shape), pending

    def backward_weight(self, pending: Any) -> None:
        """Add the gradients of all four projections."""
        x_RW, gradients, heads_RF, dy_RW = pending
        for d, (weight, bias, chunks) in zip(gradients, self._inputs(), strict=True):
            db = None if bias is None else bias.grad
            columns_backward_weight(d, x_RW, weight.grad, db, chunks, precision=self._precision)
        out_bias = None if self.out_bias is None else self.out_bias.grad
        rows_backward_weight(dy_RW, heads_RF, self.out.grad, out_bias, self._query_chunks, precision=self._precision)

    def _inputs(self) -> tuple[tuple[Parameter, Parameter | None, Chunks], ...]:
        return (
            (self.q, self.q_bias, self._query_chunks),
            (self.k, self.k_bias, self._key_chunks),
            (self.v, self.v_bias, self._key_chunks),
        )

    def _heads(self, weight: Parameter) -> tuple[int, int]:
        """Return heads of this shard and features of each."""
        return len(weight.value) // self._layer.features, self._layer.features

    def _dropout(self, context: Context) -> ProbabilityDropout | None:
        layer = self._layer
        if not context.training or layer.dropout == 0:
            return None
        return ProbabilityDropout(layer.dropout, self._key, context.step, context.first_row, layer.num_heads, self._first_head)

    def _tables(self, q: Any) -> tuple[Any, Any] | None:
        """Return cosines and sines for q [B, T, H, D] on its device, or None without a rotary embedding."""
        if self._layer.rotary is None:
            return None
        cosines, sines = _rotary_tables(q.shape[1], q.shape[3], self._layer.rotary, q.dtype.name)
        xp = array_module(q)
        return xp.asarray(cosines), xp.asarray(sines)


@lru_cache(maxsize=16)
def _rotary_tables(length: int, features: int, rotary: Rotary, dtype: str) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Return the tables, the same arrays for all layers of a model."""
    return rotary_tables(length, features, rotary.theta, rotary.scaling, dtype)
