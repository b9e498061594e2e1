"""Layers that see a slice of the positions of each sample, but have weights that are whole on every shard.

Dims: B samples, T positions of this shard, C features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, final

from lepton_mpi.nn.module import Context, Module
from lepton_mpi.nn.parameter import Parameter
from lepton_mpi.nn.place import Place
from lepton_mpi.ops.array_module import array_module


@final
class PositionwiseModule(Module):
    """A layer that treats all positions alike, at work on one chunk of them after the other.

    The gradients of its weights are added up over the chunks of all shards, in an order that does not depend on who has which.
    """

    def __init__(self, make: Callable[[Sequence[Parameter]], Module], weights: Sequence[Parameter], place: Place) -> None:
        """Wrap a layer.

        Args:
            make: makes it on its weights.
            weights: they; whole on every shard.
            place: says how positions are divided, and reaches the other shards.
        """
        self._weights, self._place = tuple(weights), place
        # The gradients of one chunk, apart from those that were added before.
        self._scratch = tuple(
            replace(weight, grad=array_module(weight.grad).zeros(weight.grad.shape, weight.grad.dtype)) for weight in weights
        )
        self._inner = make(self._scratch)

    def forward(self, x: Any, context: Context) -> tuple[Any, Any]:
        """Return y [B, T, ...] for x [B, T, ...], and what each chunk saved."""
        total = context.num_positions
        found = [self._inner.forward(x[:, chunk], context) for chunk in self._chunks(total)]
        return _side_by_side([y for y, _ in found], x), (total, [kept for _, kept in found])

    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        """Return dx [B, T, ...] for dy [B, T, ...], and the gradients of the weights."""
        total, kept = saved
        chunks = self._chunks(total)
        found = [self._inner.backward_input(dy[:, c], each, want_dx) for c, each in zip(chunks, kept, strict=True)]
        dx = _side_by_side([dx for dx, _ in found], dy) if want_dx else None
        return dx, self._weight_gradients([pending for _, pending in found], total)

    def backward_weight(self, pending: Any) -> None:
        """Add the gradients of the weights."""
        start = 0
        for weight in self._weights:
            weight.grad[...] += pending[start : start + weight.grad.size].reshape(weight.grad.shape)
            start += weight.grad.size

    def _weight_gradients(self, chunks: Sequence[Any], num_positions: int) -> Any:
        """Return the sums of the gradients over all positions, of all weights one after the other."""
        xp = array_module(self._scratch[0].grad)
        leaves = []
        for each in chunks:
            self._inner.backward_weight(each)
            leaves.append(xp.concatenate([weight.grad.reshape(-1) for weight in self._scratch]))
            for weight in self._scratch:
                weight.grad.fill(0)
        size = sum(weight.grad.size for weight in self._scratch)
        columns = xp.stack(leaves, axis=-1) if leaves else xp.zeros((size, 0), self._scratch[0].grad.dtype)
        return self._place.add_chunks(columns, num_positions)

    def _chunks(self, num_positions: int) -> tuple[slice, ...]:
        return self._place.slices(num_positions)


def _side_by_side(parts: Sequence[Any], like: Any) -> Any:
    """Return the positions of all chunks in one array."""
    if not parts:
        return array_module(like).empty_like(like)
    return parts[0] if len(parts) == 1 else array_module(like).concatenate(parts, axis=1)
