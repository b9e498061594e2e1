"""Check that what several ranks hold is the same everywhere: weights and optimizer state, compared by digest."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.waiting import wait
from lepton_mpi.errors import RankMismatchError
from lepton_mpi.nn.parameter import ParameterBlock
from lepton_mpi.train.network import Network

# Key of an entry that a rank has not, where others have more.
_NOTHING = -1
# Parameters that a message names.
_MOST_NAMED = 3


@dataclass(frozen=True)
class _Copy:
    """An array that other ranks may hold too; equal keys mean equal contents."""

    key: int
    read: Callable[[], NDArray[np.float32]]


class ReplicaCheck:
    """Compare all copies of weights and optimizer state.

    Copies are those of the nodes along the data axis, of parameters that several shards hold whole, and of parameters that
    several stages share. The data-parallel ranks of a node share one copy, and share the work of its digests (CRC-32, which
    sees every damage of up to 32 neighbouring bits, and misses one in four billion others).
    """

    @collective("grid.world")
    def __init__(self, network: Network, every_steps: int) -> None:
        """Find out who holds what.

        Collective over grid.world.

        Args:
            network: the model on its grid.
            every_steps: see `TrainConfig.check_replicas_every`.
        """
        self._network, self._every_steps = network, every_steps
        if every_steps == 0:
            return
        world, in_node = network.grid.world, network.grid.data_in_node
        self._copies = list(_own_copies(network))
        first = network.grid.rank if network.xp is not np else int(in_node.bcast(network.grid.rank, root=0))
        mine = np.array([first, len(self._copies)], np.int64)
        sizes = np.empty((world.Get_size(), 2), np.int64)
        wait(world.Iallgather(mine, sizes), "the numbers of copies")
        self._holders, most = sizes[:, 0], int(sizes[:, 1].max())
        keys = np.full(most, _NOTHING, np.int64)
        keys[: len(self._copies)] = [copy.key for copy in self._copies]
        self._keys = np.empty((world.Get_size(), most), np.int64)
        wait(world.Iallgather(keys, self._keys), "the names of copies")

    @collective("grid.world")
    def begin(self, step: int) -> None:
        """Check after a resume. Collective over grid.world. Raises as `check` does."""
        if self._every_steps and step:
            self.check(step)

    @collective("grid.world")
    def step_done(self, step: int) -> None:
        """Check where it is due after a step. Collective over grid.world. Raises as `check` does."""
        if self._every_steps and step % self._every_steps == 0:
            self.check(step)

    @collective("grid.world")
    def end(self, step: int) -> None:
        """Check at the end of training, unless the last step was checked. Collective over grid.world. Raises as `check` does."""
        if self._every_steps and step % self._every_steps:
            self.check(step)

    @collective("grid.world")
    def check(self, step: int) -> None:
        """Compare all copies, between two steps.

        Collective over grid.world.

        Args:
            step: steps done, for the message.

        Raises:
            RankMismatchError: copies differ; names parameters and ranks, on all ranks alike.
        """
        digests = np.zeros(self._keys.shape[1], np.uint32)
        digests[: len(self._copies)] = [zlib.crc32(copy.read().reshape(-1).data) for copy in self._copies]
        gathered = np.empty(self._keys.shape, np.uint32)
        wait(self._network.grid.world.Iallgather(digests, gathered), "the digests of replicas")
        different = find_different(self._keys, gathered, self._holders)
        if not different:
            return
        # By name, so that what differs in most kinds of state comes as one.
        named = sorted((self._name(key), copies) for key, copies in different.items())
        text = "; ".join(f"{name}: {describe_copies(copies, self._place)}" for name, copies in named[:_MOST_NAMED])
        more = f"; and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
        raise RankMismatchError(
            f"replicas differ after step {step}: {text}{more}. Memory or a message was damaged, or something wrote to weights "
            "on some ranks only: resume from a checkpoint before that, and test the memory of the host of that rank"
        )

    def _name(self, key: int) -> str:
        kinds, parameters = _kinds(self._network), self._network.model.parameters
        kind, index = divmod(key >> 32, len(parameters))
        name = parameters[index].name
        return f"parameter {name}" if kind == 0 else f"optimizer state {kinds[kind]} of {name}"

    def _place(self, rank: int) -> str:
        """Return a rank with its place on the grid."""
        shape = self._network.grid.shape
        rest, shard = divmod(rank, shape.shards)
        data, stage = divmod(rest, shape.stages)
        return f"rank {rank} (data {data}, stage {stage}, shard {shard})"


def find_different(keys: NDArray[np.int64], digests: NDArray[np.uint32], holders: NDArray[np.int64]) -> dict[int, dict[int, int]]:
    """Return the digests of what is not the same everywhere, by key and holder. Local, pure.

    Args:
        keys: [ranks, n], what each rank took digests of; -1: nothing.
        digests: [ranks, n].
        holders: [ranks], the rank that each rank's copies are named after.
    """
    there = keys != _NOTHING
    pairs = np.unique(np.stack([keys[there], digests[there].astype(np.int64)], axis=1), axis=0)
    found, counts = np.unique(pairs[:, 0], return_counts=True)
    different: dict[int, dict[int, int]] = {}
    for key in found[counts > 1].tolist():
        ranks, columns = np.nonzero(keys == key)
        different[key] = dict(zip(holders[ranks].tolist(), digests[ranks, columns].tolist(), strict=True))
    return different


def describe_copies(copies: dict[int, int], place: Callable[[int], str]) -> str:
    """Return which of several copies differ from most others, or all where none are most. Local, pure.

    Args:
        copies: digest by holder.
        place: the holder in words.
    """
    (usual, most), *_ = Counter(copies.values()).most_common(1)
    if 2 * most > len(copies):
        odd = [place(rank) for rank, digest in sorted(copies.items()) if digest != usual]
        return f"the copy of {', '.join(odd)} differs from {most} others"
    return f"the copies of {', '.join(map(place, sorted(copies)))} differ, and none is that of most"


def _kinds(network: Network) -> list[str]:
    """Return what a parameter has copies of: itself, and optimizer state where every node keeps all of it."""
    return ["", *([] if network.memory.ownership.pieces_differ else network.memory.slots)]


def _own_copies(network: Network) -> Iterator[_Copy]:
    """Yield the copies that this rank takes digests of."""
    memory, ranks = network.memory, network.grid.data_in_node
    layout, on_device = memory.layout, network.xp is not np
    numbers = {spec.name: index for index, spec in enumerate(network.model.parameters)}
    by_size = sorted(range(len(layout.blocks)), key=lambda index: -layout.blocks[index].size)
    for kind, slot in enumerate(_kinds(network)):
        own_device_copy = kind == 0 and on_device
        buffer: Any = memory.device_values if own_device_copy else memory.slots[slot] if slot else memory.values
        for turn, index in enumerate(by_size):
            if own_device_copy or turn % ranks.Get_size() == ranks.Get_rank():
                block = layout.blocks[index]
                key = (kind * len(numbers) + numbers[block.name]) << 32 | _block_number(block)
                view = layout.view(index, buffer)
                yield _Copy(key, partial(network.xp.asnumpy if own_device_copy else np.asarray, view))


def _block_number(block: ParameterBlock) -> int:
    """Return 32 bits that tell the blocks of a parameter apart."""
    return zlib.crc32(repr((block.starts, block.shape)).encode())
