"""Pairs of users and items: their embeddings, and the product that scores them.

Dims: B samples, P pairs a sample (1, or 2 where a second item is compared), E features of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lepton_mpi.errors import ConfigError, DataError
from lepton_mpi.nn.initial import Constant, Initial, Normal
from lepton_mpi.nn.layer import Layer, Shapes, require_shape
from lepton_mpi.nn.module import Context, Module
from lepton_mpi.nn.move import Move
from lepton_mpi.nn.parameter import Parameter, ParameterSpec
from lepton_mpi.nn.place import Place
from lepton_mpi.ops.array_module import array_module
from lepton_mpi.ops.embedding import embedding, embedding_backward


@dataclass(frozen=True)
class PairEmbedding(Layer):
    """ids [user, item, ...] to the features of each pair of the user and one of the items.

    The output is [P, 2 E]: the user's features, then the item's. With biases it is [P, 2 E + 1]: the last one is
    the sum of the user's bias and the item's. Shards hold rows of the tables.

    At work P follows from the ids that come: one less than their columns.

    Attributes:
        num_users, num_items: rows of the tables.
        num_features: E.
        pairs: P of the output on paper for samples of two columns. Where it is more than 1, the loader adds items, in any number.
        biases: whether users and items have a bias each.
        initial: law of the initial embeddings; biases start at 0.
    """

    num_users: int
    num_items: int
    num_features: int
    pairs: int = 1
    biases: bool = False
    initial: Initial = field(default_factory=lambda: Normal(0.05))

    @property
    def parameters(self) -> tuple[ParameterSpec, ...]:
        """Tables `user_embedding.weight` and `item_embedding.weight`, then `user_bias.weight` and `item_bias.weight`."""
        counts = (("user", self.num_users), ("item", self.num_items))
        tables = [ParameterSpec(f"{who}_embedding.weight", (n, self.num_features), 0, initial=self.initial) for who, n in counts]
        if self.biases:
            tables += [ParameterSpec(f"{who}_bias.weight", (n, 1), 0, initial=Constant(), decay=False) for who, n in counts]
        return tuple(tables)

    def output(self, shapes: Shapes) -> Shapes:
        """Return [P, 2 E], or [P, 2 E + 1] with biases, for 2 ids, or where items are added for any number 1 + P of them.

        Raises:
            ConfigError: the input is another.
        """
        if len(shapes) != 1 or len(shapes[0]) != 1 or shapes[0][0] < 2 or (self.pairs == 1 and shapes[0] != (2,)):
            raise ConfigError(f"layer {self.name}: expected samples of 2 columns (user, item), got {shapes}: check the data")
        (columns,) = shapes[0]
        return ((self.pairs if columns == 2 else columns - 1, 2 * self.num_features + self.biases),)

    def build(self, parameters: Mapping[str, Parameter], place: Place) -> Module:
        """Return the layer at work."""
        tables = [parameters[spec.name] for spec in self.parameters]
        return PairEmbeddingModule(tables[::2], tables[1::2], place.sum())


class PairEmbeddingModule(Module):
    """Look up rows of the tables of users and of items, add them over the shards, and pair them."""

    def __init__(self, user_tables: Sequence[Parameter], item_tables: Sequence[Parameter], reduce: Move) -> None:
        """Make the layer on tables [rows, E], and maybe [rows, 1] for biases; `reduce` adds the shards' rows up."""
        self._users = user_tables
        self._items = item_tables
        self._reduce = reduce

    def forward(self, x: Any, context: Context) -> tuple[Any, Any]:
        """Return [B, P, 2 E] or [B, P, 2 E + 1] for int64 ids [B, 1 + P].

        Raises:
            DataError: a user or an item is out of range.
        """
        xp = array_module(x)
        _require_range("users", x[:, :1], self._users[0].block.spec.shape[0])
        _require_range("items", x[:, 1:], self._items[0].block.spec.shape[0])
        users = [embedding(x[:, :1], table.value, table.block.starts[0]) for table in self._users]
        items = [embedding(x[:, 1:], table.value, table.block.starts[0]) for table in self._items]
        both = [xp.concatenate(pair, axis=1) for pair in zip(users, items, strict=True)]
        rows = self._reduce.forward([xp.concatenate(both, axis=2)])  # [B, 1 + P, E] or [B, 1 + P, E + 1]: one sum for all tables
        size = self._users[0].value.shape[1]
        user, item = rows[:, :1], rows[:, 1:]
        user_features = xp.broadcast_to(user[..., :size], item[..., :size].shape)
        return xp.concatenate([user_features, item[..., :size], user[..., size:] + item[..., size:]], axis=2), x

    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        """Return None: ids have no gradient."""
        xp = array_module(dy)
        size = self._users[0].value.shape[1]
        dbias = dy[..., 2 * size :]
        duser = xp.concatenate([dy[..., :size], dbias], axis=2).sum(axis=1, keepdims=True)
        ditem = xp.concatenate([dy[..., size : 2 * size], dbias], axis=2)
        return None, (saved, self._reduce.adjoint(xp.concatenate([duser, ditem], axis=1)))

    def backward_weight(self, pending: Any) -> None:
        """Add the gradients of the rows that were looked up."""
        ids, drows = pending
        for tables, columns in ((self._users, slice(None, 1)), (self._items, slice(1, None))):
            start = 0
            for table in tables:
                stop = start + table.value.shape[1]
                embedding_backward(drows[:, columns, start:stop], ids[:, columns], table.grad, table.block.starts[0])
                start = stop


@dataclass(frozen=True)
class DotProduct(Layer):
    """Score of each pair: the dot product of its two halves, plus a bias.

    y = sum_e user_e item_e + (user bias + item bias) + bias (Koren, Bell, Volinsky 2009, "Matrix factorization techniques for
    recommender systems", eq. 4).

    Attributes:
        num_features: E.
        biases: whether the input has one more feature, which is added to the score.
    """

    num_features: int
    biases: bool = False

    @property
    def parameters(self) -> tuple[ParameterSpec, ...]:
        """Bias [1]."""
        return (ParameterSpec(f"{self.name}.bias", (1,), decay=False),)

    def output(self, shapes: Shapes) -> Shapes:
        """Return [P] for [P, 2 E] or [P, 2 E + 1]."""
        return (require_shape(self, shapes, (None, 2 * self.num_features + self.biases))[:1],)

    def cost(self, shapes: Shapes) -> int:
        """Return E a pair."""
        return shapes[0][0] * self.num_features

    def build(self, parameters: Mapping[str, Parameter], place: Place) -> Module:
        """Return the layer at work."""
        return DotProductModule(parameters[f"{self.name}.bias"], self.num_features)


class DotProductModule(Module):
    """y = sum_e x_e x_(E + e) + x_(2 E) + bias."""

    def __init__(self, bias: Parameter, num_features: int) -> None:
        """Make the layer on its bias [1]."""
        self._bias = bias
        self._size = num_features

    def forward(self, x: Any, context: Context) -> tuple[Any, Any]:
        """Return scores [B, P] for pairs [B, P, 2 E] or [B, P, 2 E + 1]."""
        size = self._size
        y = (x[..., :size] * x[..., size : 2 * size]).sum(axis=-1)
        y += x[..., 2 * size :].sum(axis=-1)  # one feature, or none
        y += self._bias.value
        return y, x

    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        """Return the gradient of the pairs."""
        if not want_dx:
            return None, dy
        size, slope = self._size, dy[..., None]
        xp = array_module(dy)
        dx = xp.empty_like(saved)
        dx[..., :size] = saved[..., size : 2 * size] * slope
        dx[..., size : 2 * size] = saved[..., :size] * slope
        dx[..., 2 * size :] = slope
        return dx, dy

    def backward_weight(self, pending: Any) -> None:
        """Add the gradient of the bias."""
        self._bias.grad[...] += pending.sum()


def _require_range(what: str, ids: Any, count: int) -> None:
    """Require ids in [0, count); no shard would have a row for another.

    Raises:
        DataError: one is out of range.
    """
    if ids.size == 0:
        return
    lowest, highest = int(ids.min()), int(ids.max())
    if lowest < 0 or highest >= count:
        raise DataError(
            f"expected numbers of {what} in [0, {count}), got {lowest} to {highest}: check the data, or set model.num_{what}"
        )
