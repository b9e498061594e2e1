"""Linear movements of activations between the shards of a layer, as the layers see them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from lepton_mpi.runtime.tree_order import add_leaves


class Move(ABC):
    """A linear map F and its adjoint F*, such that <F x, y> = <x, F* y>."""

    @abstractmethod
    def forward(self, x: Any) -> Any:
        """Return F x."""

    @abstractmethod
    def adjoint(self, dy: Any) -> Any:
        """Return F* dy."""

    def of(self, num_positions: int) -> Move:
        """Return the move for samples of so many positions, where that matters, see `Context.num_positions`. Local."""
        del num_positions
        return self


class Stay(Move):
    """The identity: nothing moves."""

    def forward(self, x: Any) -> Any:
        """Return x."""
        return x

    def adjoint(self, dy: Any) -> Any:
        """Return dy."""
        return dy


class AddParts(Move):
    """Partial arrays, one for each chunk of the dim that was summed over, to their sum."""

    def forward(self, x: Any) -> Any:
        """Return the sum of a list of arrays, in the order of one tree (`runtime/tree_order.py`), maybe in one of them."""
        (total,) = add_leaves(x, 0, len(x))
        return total

    def adjoint(self, dy: Any) -> Any:
        """Return dy, the gradient of every part."""
        return dy


class Replicate(Move):
    """An array that several chunks use: the adjoint of `AddParts`."""

    def forward(self, x: Any) -> Any:
        """Return x."""
        return x

    def adjoint(self, dy: Any) -> Any:
        """Return the sum of a list of gradients, one for each chunk, maybe in one of them."""
        (total,) = add_leaves(dy, 0, len(dy))
        return total
