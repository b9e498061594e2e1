"""Vectors for ids and for positions. Dims: B samples, T positions, V ids, C features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.errors import ConfigError, DataError
from lepton_mpi.nn.initial import Initial, Normal
from lepton_mpi.nn.layer import Layer, Shapes, require_shape
from lepton_mpi.nn.module import Context, Module
from lepton_mpi.nn.move import AddParts, Move, Stay
from lepton_mpi.nn.parameter import Parameter, ParameterSpec
from lepton_mpi.nn.place import Place
from lepton_mpi.ops.embedding import embedding, embedding_backward


@final
@dataclass(frozen=True)
class ZeroRow(Initial):
    """Another law, but for one row of zeros.

    Attributes:
        law: of the other rows.
        row: number of the row.
        num_features: length of a row.
    """

    law: Initial
    row: int
    num_features: int

    def draw(self, key: int, start: int, count: int) -> NDArray[np.float32]:
        """Return the other law's numbers, with zeros in the row."""
        values = self.law.draw(key, start, count)
        first = self.row * self.num_features - start
        values[max(first, 0) : max(first + self.num_features, 0)] = 0
        return values


@dataclass(frozen=True)
class Embedding(Layer):
    """Row id of a table for every id, [B, ...] to [B, ..., C].

    Attributes:
        num_embeddings: V.
        num_features: C.
        initial: law of the initial table.
        split: whether shards divide the rows of the table; each then adds the rows that it has.
        padding: an id whose vector is 0 and stays so, or None.
    """

    num_embeddings: int
    num_features: int
    initial: Initial = field(default_factory=lambda: Normal(0.02))
    split: bool = True
    padding: int | None = None

    @property
    def parameters(self) -> tuple[ParameterSpec, ...]:
        """Weight [V, C]."""
        initial = self.initial if self.padding is None else ZeroRow(self.initial, self.padding, self.num_features)
        shape = (self.num_embeddings, self.num_features)
        return (ParameterSpec(f"{self.name}.weight", shape, 0 if self.split else None, initial=initial),)

    def output(self, shapes: Shapes) -> Shapes:
        """Return [..., C] for ids [...]."""
        if len(shapes) != 1:
            raise ConfigError(f"layer {self.name}: expected one array of ids, got {len(shapes)}: check [model] against the data")
        return ((*shapes[0], self.num_features),)

    def build(self, parameters: Mapping[str, Parameter], place: Place) -> EmbeddingModule:
        """Return the layer at work."""
        weight = parameters[f"{self.name}.weight"]
        return EmbeddingModule(weight, self.padding, place.sum() if self.split else AddParts())


class EmbeddingModule(Module):
    """y = reduce(rows that are here, else zeros)."""

    def __init__(self, weight: Parameter, padding: int | None, reduce: Move) -> None:
        """Make the layer on its rows of the table."""
        self.weight = weight
        self.padding = padding
        self.reduce = reduce
        self.first = weight.block.starts[0]

    def forward(self, x: Any, context: Context) -> tuple[Any, Any]:
        """Return y [B, ..., C] for int64 ids [B, ...].

        Raises:
            DataError: an id is outside of the table; all shards find the same.
        """
        num_embeddings = self.weight.block.spec.shape[0]
        outside = (x < 0) | (x >= num_embeddings)
        if outside.any():
            raise DataError(
                f"parameter {self.weight.block.name}: expected ids in [0, {num_embeddings}), received {int(x[outside][0])}: "
                "the data were made for a larger vocabulary than the model has"
            )
        reduce = self.reduce.of(context.num_positions)
        return reduce.forward([embedding(x, self.weight.value, self.first)]), (x, reduce)

    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        """Return None: ids have no gradient."""
        ids, reduce = saved
        return None, (ids, reduce.adjoint(dy))

    def backward_weight(self, pending: Any) -> None:
        """Add the gradient of the rows that were used."""
        ids, dy = pending
        if self.padding is not None:
            ids = ids.copy()
            ids[ids == self.padding] = -1  # nobody's row
        embedding_backward(dy, ids, self.weight.grad, self.first)


@dataclass(frozen=True)
class LearnedPositions(Layer):
    """Adds row offset + t of a table to position t of [B, T, C].

    Attributes:
        max_positions: rows of the table that are positions.
        num_features: C.
        initial: law of the initial table.
        offset: rows of the table before position 0.
    """

    max_positions: int
    num_features: int
    initial: Initial = field(default_factory=lambda: Normal(0.02))
    offset: int = 0

    @property
    def parameters(self) -> tuple[ParameterSpec, ...]:
        """Weight [offset + max_positions, C], on every shard."""
        shape = (self.offset + self.max_positions, self.num_features)
        return (ParameterSpec(f"{self.name}.weight", shape, initial=self.initial),)

    def output(self, shapes: Shapes) -> Shapes:
        """Return [T, C] for [T, C]."""
        shape = require_shape(self, shapes, (None, self.num_features))
        if shape[0] > self.max_positions:
            raise ConfigError(
                f"layer {self.name}: expected at most {self.max_positions} positions, got {shape[0]}: cut the sequences of "
                "[data], or give [model] more positions"
            )
        return (shape,)

    def build(self, parameters: Mapping[str, Parameter], place: Place) -> LearnedPositionsModule:
        """Return the layer at work."""
        return LearnedPositionsModule(parameters[f"{self.name}.weight"], self.offset, place)


class LearnedPositionsModule(Module):
    """y = x + weight[offset : offset + T]; of slices of the positions, each shard adds its own."""

    def __init__(self, weight: Parameter, offset: int, place: Place) -> None:
        """Make the layer on its table."""
        self.weight = weight
        self.offset = offset
        self._share = place.share
        self._gather = place.gather_positions() if place.sequence else Stay()

    def forward(self, x: Any, context: Context) -> tuple[Any, Any]:
        """Return y [B, T, C] for x [B, T, C]."""
        first = self.offset + self._share(context.num_positions)[0] if context.num_positions else self.offset
        return x + self.weight.value[first : first + x.shape[1]], self._gather.of(context.num_positions)

    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        """Return dx, which is dy."""
        return dy if want_dx else None, saved.forward(dy.sum(axis=0)[None])[0]

    def backward_weight(self, pending: Any) -> None:
        """Add the sum of dy over the samples, of all positions."""
        self.weight.grad[self.offset : self.offset + len(pending)] += pending
