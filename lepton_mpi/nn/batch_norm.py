"""Batch normalisation by the statistics of the micro-batch on all data ranks together.

Ioffe and Szegedy 2015, "Batch normalization: accelerating deep network training by reducing internal covariate shift".

Dims: B samples, C channels (of this shard), R ranks of the data axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lepton_mpi.comm.contract import collective
from lepton_mpi.nn.initial import Constant
from lepton_mpi.nn.layer import Layer, Shapes, require_shape
from lepton_mpi.nn.module import Context, Module
from lepton_mpi.nn.parameter import Parameter, ParameterSpec
from lepton_mpi.nn.piecewise import piece_rows
from lepton_mpi.nn.place import Place
from lepton_mpi.ops.array_module import array_module
from lepton_mpi.ops.batch_norm import (
    Moments,
    batch_norm,
    batch_norm_backward_input,
    batch_norm_sums,
    channel_moments,
    merge_moments,
)


@dataclass(frozen=True)
class BatchNorm2d(Layer):
    """y = (x - mean) / sqrt(variance + epsilon) * weight + bias over the last dim of [B, ..., C].

    In training, mean and variance are those of the micro-batch on all data ranks; else the running ones.

    Attributes:
        num_features: global number of channels.
        momentum: how much of a batch's statistics goes into the running ones.
        epsilon: added to the variance.
        split: whether the channels come divided over the shards.
    """

    num_features: int
    momentum: float = 0.1
    epsilon: float = 1e-5
    split: bool = False

    @property
    def parameters(self) -> tuple[ParameterSpec, ...]:
        """Weight, bias, running mean and running variance, [C] each."""
        shape, split_dim = (self.num_features,), 0 if self.split else None
        zero, one = Constant(0.0), Constant(1.0)
        return (
            ParameterSpec(f"{self.name}.weight", shape, split_dim, initial=one, decay=False),
            ParameterSpec(f"{self.name}.bias", shape, split_dim, initial=zero, decay=False),
            ParameterSpec(f"{self.name}.running_mean", shape, split_dim, initial=zero, decay=False, role="statistic"),
            ParameterSpec(f"{self.name}.running_var", shape, split_dim, initial=one, decay=False, role="statistic"),
        )

    @property
    def divided(self) -> bool:
        """As the input."""
        return self.split

    @property
    def keeps_pieces_apart(self) -> bool:
        """True: its statistics are those of all pieces together."""
        return True

    def output(self, shapes: Shapes) -> Shapes:
        """Return the same shape."""
        require_shape(self, shapes, (-1, self.num_features))
        return shapes

    def cost(self, shapes: Shapes) -> int:
        """Return two a value: statistics and normalisation."""
        total = 2
        for size in shapes[0]:
            total *= size
        return total

    def build(self, parameters: Mapping[str, Parameter], place: Place) -> BatchNorm2dModule:
        """Return the layer at work."""
        weight, bias, mean, variance = (parameters[spec.name] for spec in self.parameters)
        return BatchNorm2dModule(weight, bias, mean, variance, self.momentum, self.epsilon, place)


@dataclass(frozen=True)
class _Kept:
    """What the backward pass needs; moments of all ranks, None with running statistics."""

    x: Any
    mean: Any
    deviation_inverse: Any
    moments: Moments | None = None
    share: float = 0.0
    pieces: tuple[slice, ...] = (slice(None),)
    num_pieces: int = 0


class BatchNorm2dModule(Module):
    """Batch normalisation. In training, `forward` and `backward_input` are collective over grid.data."""

    def __init__(
        self,
        weight: Parameter,
        bias: Parameter,
        running_mean: Parameter,
        running_var: Parameter,
        momentum: float,
        epsilon: float,
        place: Place,
    ) -> None:
        """Make the layer on its parameters, [C] each."""
        self.weight = weight
        self.bias = bias
        self.running_mean = running_mean
        self.running_var = running_var
        self.momentum = momentum
        self.epsilon = epsilon
        self.place = place

    def forward(self, x: Any, context: Context) -> tuple[Any, Any]:
        """Return y of the shape of x [B, ..., C]; an empty rank takes part too."""
        if context.training:
            pieces = (slice(None),) if context.pieces is None else tuple(piece_rows(context.pieces))[: len(context.pieces)]
            moments, num_samples = self._gather_moments(x, pieces, context.num_pieces)
            share = num_samples / context.num_global
            inverse = moments.deviation_inverse(self.epsilon)
            kept = _Kept(x, moments.mean, inverse, moments, share, pieces, context.num_pieces)
        else:
            variance = self.running_var.value.astype(np.float64)
            inverse = 1 / array_module(variance).sqrt(variance + self.epsilon)
            kept = _Kept(x, self.running_mean.value.astype(np.float64), inverse)
        return batch_norm(x, kept.mean, kept.deviation_inverse, self.weight.value, self.bias.value), kept

    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        """Return dx for dy, where all data ranks' outputs depend on all their inputs."""
        kept: _Kept = saved
        xp = array_module(dy)
        sums = [batch_norm_sums(dy[rows], kept.x[rows], kept.mean, kept.deviation_inverse) for rows in kept.pieces]
        pending = (sums, kept.moments, kept.share)
        if not want_dx:
            return None, pending
        if kept.moments is None:  # running statistics are constants
            total_dy = total_dy_xhat = xp.zeros_like(kept.mean)
            count = 1
        else:
            rows = _stack([xp.concatenate(pair) for pair in sums], 2 * kept.mean.size, xp)
            totals = self.place.gather_over_data(rows, kept.num_pieces)
            total_dy, total_dy_xhat = xp.split(_sum_in_order(totals), 2)
            count = kept.moments.count
        dx = batch_norm_backward_input(
            dy, kept.x, kept.mean, kept.deviation_inverse, self.weight.value, total_dy, total_dy_xhat, count
        )
        return dx, pending

    def backward_weight(self, pending: Any) -> None:
        """Add dweight and dbias, and on the first data rank the change of the running statistics."""
        sums, moments, share = pending
        for sum_dy, sum_dy_xhat in sums:
            self.weight.grad[...] += sum_dy_xhat.astype(self.weight.grad.dtype)
            self.bias.grad[...] += sum_dy.astype(self.bias.grad.dtype)
            if self.place.take:
                self.place.take((self.weight, self.bias))
        if moments is None or moments.count == 0 or not self.place.is_first_data:
            return
        # As PyTorch does, the running variance divides by count - 1; a single row has none.
        variance = moments.squares / max(moments.count - 1, 1)
        for running, batch in ((self.running_mean, moments.mean), (self.running_var, variance)):
            change = self.momentum * share * (batch - running.value)
            running.grad[...] += change.astype(running.grad.dtype)

    @collective("grid.data")
    def _gather_moments(self, x: Any, pieces: Sequence[slice], num_pieces: int) -> tuple[Moments, int]:
        """Return moments and number of samples of all data ranks, merged piece by piece. Collective over grid.data."""
        xp = array_module(x)
        own = []
        for rows in pieces:
            piece = x[rows]
            found = channel_moments(piece)
            counts = xp.asarray([piece.shape[0], found.count], dtype=np.float64)
            own.append(xp.concatenate([counts, found.mean, found.squares]))
        gathered = self.place.gather_over_data(_stack(own, 2 + 2 * x.shape[-1], xp), num_pieces)
        means, squares = xp.split(gathered[:, 2:], 2, axis=1)
        return merge_moments(gathered[:, 1], means, squares), int(gathered[:, 0].sum())


def _stack(rows: Sequence[Any], length: int, xp: Any) -> Any:
    """Return rows as float64 [rows, length]; there may be none."""
    return xp.stack(rows) if rows else xp.empty((0, length), np.float64)


def _sum_in_order(rows: Any) -> Any:
    """Return the sum of rows, added one after the other."""
    total = rows[0]
    for row in rows[1:]:
        total = total + row
    return total
