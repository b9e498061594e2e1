"""Layers whose work on the pieces of a batch is done apart, so that its bits do not depend on who does how many of them.

A product's bits may depend on the number of its rows, and a gradient's on the order in which samples are added. Here a layer
works on one piece at a time, and hands the gradient of its weights over after each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, final

from lepton_mpi.nn.module import Context, Module
from lepton_mpi.nn.parameter import Parameter
from lepton_mpi.nn.place import TakeGradients
from lepton_mpi.ops.array_module import array_module


@final
class PiecewiseModule(Module):
    """A layer at work on one piece after the other."""

    def __init__(self, inner: Module, weights: Sequence[Parameter], take: TakeGradients) -> None:
        """Wrap a layer.

        Args:
            inner: the layer.
            weights: its weights, whose gradients are taken after each piece.
            take: takes them.
        """
        self._inner, self._weights, self._take = inner, tuple(weights), take

    def forward(self, x: Any, context: Context) -> tuple[Any, Any]:
        """Return y [B, ...] for x [B, ...], and what each piece saved."""
        if context.pieces is None:
            y, saved = self._inner.forward(x, context)
            return y, (None, [saved])
        outputs, kept, pieces = [], [], piece_rows(context.pieces)
        for rows in pieces:
            mask = None if context.key_mask is None else context.key_mask[rows]
            piece = replace(context, first_row=context.first_row + rows.start, key_mask=mask, pieces=None)
            y, saved = self._inner.forward(x[rows], piece)
            outputs.append(y)
            kept.append(saved)
        return join(outputs), (pieces, kept)

    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        """Return dx [B, ...] for dy [B, ...], and what is pending of each piece."""
        pieces, kept = saved
        if pieces is None:
            dx, pending = self._inner.backward_input(dy, kept[0], want_dx)
            return dx, [pending]
        found = [self._inner.backward_input(dy[rows], each, want_dx) for rows, each in zip(pieces, kept, strict=True)]
        return join([dx for dx, _ in found]) if want_dx and found[0][0] is not None else None, [pending for _, pending in found]

    def backward_weight(self, pending: Any) -> None:
        """Add the gradients of each piece, and hand them over."""
        for each in pending:
            self._inner.backward_weight(each)
            self._take(self._weights)


def piece_rows(sizes: Sequence[int]) -> list[slice]:
    """Return where the pieces of a micro-batch lie; one without rows where there is none. Local."""
    ends = list(accumulate(sizes))
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)] or [slice(0, 0)]


def join(parts: Sequence[Any]) -> Any:
    """Return the rows of all pieces in one array. Local."""
    return parts[0] if len(parts) == 1 else array_module(parts[0]).concatenate(parts)
