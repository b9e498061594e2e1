"""What a layer is at work: a forward pass and a backward pass in two halves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Context:
    """What layers may know of the micro-batch that passes through them; the same on every grid.

    Attributes:
        training: whether batch statistics, dropout and the like are on.
        step: number of the training step, from 0.
        first_row: place in the global batch of the micro-batch's first sample on this rank; the others follow it.
        num_global: samples of the global batch.
        key_mask: bool [B, T], False at padding; None where there is none.
        pieces: rows of each piece of the micro-batch, where the work on these must be done apart; None: it is one.
        num_pieces: pieces of the batch over all data ranks, which have them in rank order.
        num_positions: positions of a whole sample, where shards hold slices of them, see `Place.sequence`; else 0.
        divided_output: whether the layer that makes the output of the model may leave it divided over the shards.
    """

    training: bool = False
    step: int = 0
    first_row: int = 0
    num_global: int = 1
    key_mask: Any = None
    pieces: tuple[int, ...] | None = None
    num_pieces: int = 0
    divided_output: bool = False
    num_positions: int = 0


class Module(ABC):
    """A layer on its parameters. It keeps no state between calls.

    What a pass needs later is returned, not stored, since several micro-batches are in flight at
    once. The backward pass comes in halves, so that a pipeline can send the input gradient on
    before it spends time on the weights. Inputs and outputs are arrays [B, ...] (B may be 0), or
    tuples of them where a layer carries several. Arrays that are handed in are never written to.
    """

    @abstractmethod
    def forward(self, x: Any, context: Context) -> tuple[Any, Any]:
        """Return the output for an input [B, ...] and what the backward pass needs."""

    @abstractmethod
    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        """Return the gradient of the input and what `backward_weight` needs.

        Args:
            dy: gradient of the output, shape of the output.
            saved: second result of the `forward` it belongs to.
            want_dx: False where nobody needs the input's gradient; None is returned for it then.
        """

    def backward_weight(self, pending: Any) -> None:
        """Add the gradients of the parameters to their `grad` arrays; nothing for a layer without parameters.

        Args:
            pending: second result of `backward_input`.
        """
        del pending

    def backward(self, dy: Any, saved: Any, want_dx: bool, complete: Callable[[], None]) -> Any:
        """Do both halves and return the input's gradient. A layer may make the gradients of its parameters first.

        Args:
            dy, saved, want_dx: see `backward_input`.
            complete: called as soon as the gradients of the parameters have been added, so that they can travel.
        """
        dx, pending = self.backward_input(dy, saved, want_dx)
        self.backward_weight(pending)
        complete()
        return dx
