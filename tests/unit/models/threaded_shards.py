"""Shards of a model as threads of one process, to compare with the whole model without MPI."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.models.family import ModelSpec
from lepton_mpi.nn.chain import ChainModule
from lepton_mpi.nn.module import Context
from lepton_mpi.nn.move import Move
from lepton_mpi.nn.parameter import Parameter, cut_parameter, initial_values
from lepton_mpi.nn.place import Place


class Meeting:
    """Where threads exchange arrays."""

    def __init__(self, shards: int) -> None:
        self._slots: list[Any] = [None] * shards
        self._barrier = threading.Barrier(shards, timeout=60)

    def all_of(self, shard: int, x: Any) -> list[Any]:
        """Return what every shard brought, in order."""
        self._slots[shard] = x
        self._barrier.wait()
        everyone = list(self._slots)
        self._barrier.wait()
        return everyone

    def give_up(self) -> None:
        """Let nobody wait for a thread that failed."""
        self._barrier.abort()


@dataclass
class Exchange(Move):
    """A move given by what is done to the arrays of all shards, forward and backward."""

    there: Any
    back: Any

    def forward(self, x: Any) -> Any:
        return self.there(x)

    def adjoint(self, dy: Any) -> Any:
        return self.back(dy)


@dataclass(frozen=True)
class ThreadPlace(Place):
    """A shard that is a thread."""

    meeting: Meeting = field(default_factory=lambda: Meeting(1))

    def _total(self, parts: Any) -> Any:
        (part,) = parts
        return sum(self.meeting.all_of(self.shard, part))

    def replicate(self, length: int = 0, unit: int = 1) -> Move:
        return Exchange(lambda x: x, self._total)

    def sum(self, length: int = 0, unit: int = 1) -> Move:
        return Exchange(self._total, lambda dy: dy)

    def gather(self, length: int, unit: int = 1) -> Move:
        start, stop = self.share(length, unit)

        def whole(x: Any) -> Any:
            return np.concatenate(self.meeting.all_of(self.shard, x), axis=-1)

        return Exchange(whole, lambda dy: np.ascontiguousarray(dy[..., start:stop]))

    def gather_over_data(self, x: Any, num_rows: int = 0) -> Any:
        return x


def train_pass(model: ModelSpec, x: NDArray[Any], shards: int, seed: int = 3) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    """Return the output of a float64 training pass and the whole gradients by name, for a gradient of the output that follows
    from its shape. Replicated parameters must have one gradient on all shards."""
    meeting = Meeting(shards)

    def one(shard: int) -> tuple[NDArray[Any], list[Parameter]]:
        try:
            parameters = {}
            for spec in model.parameters:
                block = cut_parameter(spec, shards, shard)
                value = initial_values(block, seed).astype(np.float64)
                parameters[spec.name] = Parameter(block, value, np.zeros_like(value))
            place = ThreadPlace(shards=shards, shard=shard, seed=seed, meeting=meeting)
            module = ChainModule([layer.build(parameters, place) for layer in model.layers])
            y, saved = module.forward(x, Context(training=True, num_global=max(len(x), 1)))
            dy = np.random.default_rng(4).standard_normal(y.shape)
            module.backward_weight(module.backward_input(dy, saved, want_dx=False)[1])
            return y, list(parameters.values())
        except BaseException:
            meeting.give_up()
            raise

    with ThreadPoolExecutor(shards) as pool:
        found = list(pool.map(one, range(shards)))
    gradients = {}
    for parts in zip(*(parameters for _, parameters in found), strict=True):
        spec = parts[0].block.spec
        if spec.split_dim is not None:
            gradients[spec.name] = np.concatenate([part.grad for part in parts], axis=spec.split_dim)
        else:
            for part in parts[1:]:
                np.testing.assert_array_equal(part.grad, parts[0].grad, err_msg=spec.name)
            gradients[spec.name] = parts[0].grad
    for y, _ in found[1:]:
        np.testing.assert_array_equal(y, found[0][0])
    return found[0][0], gradients
