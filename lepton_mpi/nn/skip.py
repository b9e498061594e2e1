"""Skip connections over many layers: arrays that travel along as a tuple (x, skip, ...), the latest skip first.

A single array is passed bare, two or more as a tuple, so that skips can cross from stage to stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lepton_mpi.errors import ConfigError
from lepton_mpi.nn.layer import Layer, Shapes
from lepton_mpi.nn.module import Context, Module
from lepton_mpi.nn.parameter import Parameter, ParameterSpec
from lepton_mpi.nn.place import Place
from lepton_mpi.ops.array_module import array_module


@dataclass(frozen=True)
class Down(Layer):
    """(x, *skips) to (pool(body(x)), body(x), *skips): keep what the body made as a skip.

    Attributes:
        body: a layer whose output is replicated.
        pool: what goes on to the next level.
    """

    body: Layer
    pool: Layer

    @property
    def parameters(self) -> tuple[ParameterSpec, ...]:
        """Those of the body, then those of the pool."""
        return self.body.parameters + self.pool.parameters

    @property
    def keeps_pieces_apart(self) -> bool:
        """True: its parts do."""
        return True

    def output(self, shapes: Shapes) -> Shapes:
        """Return one shape more than came in."""
        kept = self.body.output(shapes[:1])
        return (*self.pool.output(kept), *kept, *shapes[1:])

    def cost(self, shapes: Shapes) -> int:
        """Return the cost of body and pool."""
        return self.body.cost(shapes[:1]) + self.pool.cost(self.body.output(shapes[:1]))

    def build(self, parameters: Mapping[str, Parameter], place: Place) -> Module:
        """Return the layer at work."""
        return DownModule(self.body.at_work(parameters, place), self.pool.at_work(parameters, place))


class DownModule(Module):
    """(x, *skips) to (pool(body(x)), body(x), *skips)."""

    def __init__(self, body: Module, pool: Module) -> None:
        """Join a body and what follows it."""
        self._body = body
        self._pool = pool

    def forward(self, x: Any, context: Context) -> tuple[Any, Any]:
        """Return one array more than came in."""
        x, *skips = _arrays(x)
        kept, body = self._body.forward(x, context)
        y, pool = self._pool.forward(kept, context)
        return (y, kept, *skips), (body, pool)

    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        """Return the gradients of what came in."""
        body, pool = saved
        dy, dkept, *dskips = dy
        through, waiting = self._pool.backward_input(dy, pool)
        dx, pending = self._body.backward_input(through + dkept, body, want_dx)
        return _bundle(dx, *dskips) if want_dx else None, (pending, waiting)

    def backward_weight(self, pending: Any) -> None:
        """Add the gradients of pool and body."""
        body, pool = pending
        self._pool.backward_weight(pool)
        self._body.backward_weight(body)


@dataclass(frozen=True)
class Up(Layer):
    """(x, skip, *rest) to (body(concatenation of up(x) and skip over the last dim), *rest): use the latest skip.

    Attributes:
        up: a layer that brings x to the size of the skip; its output is replicated.
        body: a layer on both.
    """

    up: Layer
    body: Layer

    @property
    def parameters(self) -> tuple[ParameterSpec, ...]:
        """Those on the way up, then those of the body."""
        return self.up.parameters + self.body.parameters

    @property
    def keeps_pieces_apart(self) -> bool:
        """True: its parts do."""
        return True

    def output(self, shapes: Shapes) -> Shapes:
        """Return one shape less than came in.

        Raises:
            ConfigError: there is no skip, or it is of another size.
        """
        return (*self.body.output(self._joined(shapes)), *shapes[2:])

    def cost(self, shapes: Shapes) -> int:
        """Return the cost of both."""
        return self.up.cost(shapes[:1]) + self.body.cost(self._joined(shapes))

    def build(self, parameters: Mapping[str, Parameter], place: Place) -> Module:
        """Return the layer at work."""
        return UpModule(self.up.at_work(parameters, place), self.body.at_work(parameters, place))

    def _joined(self, shapes: Shapes) -> Shapes:
        """Return the shape of the concatenation."""
        if len(shapes) < 2:
            raise ConfigError(f"layer {self.name}: expected an array and a skip, got one array of shape {shapes[0]}")
        (risen,), skip = self.up.output(shapes[:1]), shapes[1]
        if risen[:-1] != skip[:-1]:
            raise ConfigError(
                f"layer {self.name}: what comes up has shape {risen}, the skip {skip}: all but the last must be equal"
            )
        return ((*skip[:-1], risen[-1] + skip[-1]),)


class UpModule(Module):
    """(x, skip, *rest) to (body(concatenation of up(x) and skip), *rest)."""

    def __init__(self, up: Module, body: Module) -> None:
        """Join the way up and what follows it."""
        self._up = up
        self._body = body

    def forward(self, x: Any, context: Context) -> tuple[Any, Any]:
        """Return one array less than came in."""
        x, skip, *rest = x
        risen, up = self._up.forward(x, context)
        joined = array_module(risen).concatenate([risen, skip], axis=-1)
        y, body = self._body.forward(joined, context)
        return _bundle(y, *rest), (up, body, risen.shape[-1])

    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        """Return the gradients of what came in."""
        up, body, width = saved
        dy, *drest = _arrays(dy)
        djoined, pending = self._body.backward_input(dy, body)
        contiguous = array_module(djoined).ascontiguousarray
        dx, waiting = self._up.backward_input(contiguous(djoined[..., :width]), up, want_dx)
        return (dx, contiguous(djoined[..., width:]), *drest) if want_dx else None, (waiting, pending)

    def backward_weight(self, pending: Any) -> None:
        """Add the gradients of the body and of the way up."""
        up, body = pending
        self._body.backward_weight(body)
        self._up.backward_weight(up)


@dataclass(frozen=True)
class PassBy(Layer):
    """(x, *skips) to (body(x), *skips): a layer that the skips pass by."""

    body: Layer

    @property
    def parameters(self) -> tuple[ParameterSpec, ...]:
        """Those of the body."""
        return self.body.parameters

    @property
    def keeps_pieces_apart(self) -> bool:
        """True: its parts do."""
        return True

    def output(self, shapes: Shapes) -> Shapes:
        """Return the body's output, and the skips as they came."""
        return (*self.body.output(shapes[:1]), *shapes[1:])

    def cost(self, shapes: Shapes) -> int:
        """Return the cost of the body."""
        return self.body.cost(shapes[:1])

    def build(self, parameters: Mapping[str, Parameter], place: Place) -> Module:
        """Return the layer at work."""
        return PassByModule(self.body.at_work(parameters, place))


class PassByModule(Module):
    """(x, *skips) to (body(x), *skips)."""

    def __init__(self, body: Module) -> None:
        """Wrap a body."""
        self._body = body

    def forward(self, x: Any, context: Context) -> tuple[Any, Any]:
        """Return the body's output, and the skips as they came."""
        x, *skips = _arrays(x)
        y, saved = self._body.forward(x, context)
        return _bundle(y, *skips), saved

    def backward_input(self, dy: Any, saved: Any, want_dx: bool = True) -> tuple[Any, Any]:
        """Return the gradient of the body's input, and those of the skips as they came."""
        dy, *dskips = _arrays(dy)
        dx, pending = self._body.backward_input(dy, saved, want_dx)
        return _bundle(dx, *dskips) if want_dx else None, pending

    def backward_weight(self, pending: Any) -> None:
        """Add the gradients of the body."""
        self._body.backward_weight(pending)


def _arrays(x: Any) -> tuple[Any, ...]:
    """Return what flows as a tuple."""
    return x if isinstance(x, tuple) else (x,)


def _bundle(*arrays: Any) -> Any:
    """Return arrays as they flow: one of them bare."""
    return arrays[0] if len(arrays) == 1 else arrays
