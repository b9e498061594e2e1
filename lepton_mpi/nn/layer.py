"""What a layer is on paper: plain data that every rank knows, before any array exists."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias, final

from lepton_mpi.errors import ConfigError
from lepton_mpi.nn.module import Module
from lepton_mpi.nn.parameter import Parameter, ParameterSpec
from lepton_mpi.nn.piecewise import PiecewiseModule
from lepton_mpi.nn.place import Place

# Shapes of one sample of what flows between layers, one for each array: ((32, 32, 16),) is an image of 16
# channels, channels last. Nearly all layers take and return one array.
Shapes: TypeAlias = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Layer(ABC):
    """A layer: which parameters it has, what it makes of shapes, and how it is built on a rank.

    Attributes:
        name: prefix of its parameters' names, which are `<name>.<what>`; also keys what is random in it.
    """

    name: str

    @property
    def parameters(self) -> tuple[ParameterSpec, ...]:
        """Parameters in the order in which they lie in memory; none unless overridden."""
        return ()

    @property
    def divided(self) -> bool:
        """Whether the last dim of the output is divided over the shards; the layer after it must expect that."""
        return False

    @property
    def divided_unit(self) -> int:
        """Length of the units in which a divided output is divided."""
        return 1

    @property
    def can_divide_output(self) -> bool:
        """Whether it leaves the last dim of its output divided where the loss takes that, see `Context.divided_output`."""
        return False

    def output(self, shapes: Shapes) -> Shapes:
        """Return the global shapes that it makes of these; the same ones unless overridden. Local.

        Raises:
            ConfigError: it cannot take such an input.
        """
        return shapes

    def cost(self, shapes: Shapes) -> int:
        """Return the multiply-adds of a forward pass of one sample, for balancing stages. Local."""
        return 0

    @property
    def keeps_pieces_apart(self) -> bool:
        """Whether the layer at work does by itself what `PiecewiseModule` does for others, as layers made of layers do."""
        return False

    @final
    def at_work(self, parameters: Mapping[str, Parameter], place: Place) -> Module:
        """Return what `build` returns, with the work on pieces of a batch kept apart where the place asks for that. Local."""
        module = self.build(parameters, place)
        weights = [parameters[spec.name] for spec in self.parameters if spec.role == "weight"]
        if place.take is None or self.keeps_pieces_apart or not weights:
            return module
        return PiecewiseModule(module, weights, place.take)

    @abstractmethod
    def build(self, parameters: Mapping[str, Parameter], place: Place) -> Module:
        """Return the layer at work on a rank's blocks of its parameters, by global name. Local."""


def require_shape(layer: Layer, shapes: Shapes, expected: tuple[int | None, ...]) -> tuple[int, ...]:
    """Return the shape of the only array of an input; None stands for any length of a dim, a first -1 for any dims. Local.

    Raises:
        ConfigError: the input is another.
    """
    any_dims = expected[:1] == (-1,)
    wanted = expected[1:] if any_dims else expected
    shape = shapes[0]
    tail = shape[len(shape) - len(wanted) :] if any_dims and len(shape) >= len(wanted) else shape
    if len(shapes) != 1 or len(tail) != len(wanted) or any(w not in (None, g) for w, g in zip(wanted, tail, strict=True)):
        shown = ", ".join("any" if w is None else str(w) for w in wanted)
        raise ConfigError(
            f"layer {layer.name}: expected samples of shape ({'..., ' if any_dims else ''}{shown}), got "
            f"{' and '.join(map(str, shapes))}: check the sizes in [model] against the data"
        )
    return shape
