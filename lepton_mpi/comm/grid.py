"""The process grid: data x stages x shards ranks, and the communicators along its axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.nodes import number_nodes as _number_nodes
from lepton_mpi.comm.nodes import split_nodes as _split_nodes
from lepton_mpi.errors import GridError
from lepton_mpi.runtime.mpi import MPI


@dataclass(frozen=True)
class GridShape:
    """Sizes of the three axes."""

    data: int
    stages: int
    shards: int

    @property
    def num_ranks(self) -> int:
        """Number of ranks of a grid of this shape."""
        return self.data * self.stages * self.shards

    def __str__(self) -> str:
        return f"{self.data} x {self.stages} x {self.shards}"


def choose_grid_shape(
    num_ranks: int, data: int = 0, stages: int = 0, shards: int = 0, *, max_stages: int, max_shards: int
) -> GridShape:
    """Complete the sizes that are 0 so that the product is the number of ranks. Local.

    Data parallelism costs least a rank, so the model axis (stages x shards) gets the largest
    possible size not above the square root of the ranks, as near to square itself as the model allows.

    Args:
        num_ranks: ranks of the world.
        data, stages, shards: requested sizes; 0 leaves the choice.
        max_stages: most stages the model can be cut into.
        max_shards: most shards its layers can be cut into.

    Raises:
        GridError: no such grid exists.
    """
    requested = f"data={data or 'any'} x stages={stages or 'any'} x shards={shards or 'any'}"
    for name, size, most in (("stages", stages, max_stages), ("shards", shards, max_shards)):
        if size > most:
            raise GridError(f"grid.{name}: this model can be cut into at most {most} {name}, received {size}")
    candidates = [
        GridShape(num_ranks // (p * h), p, h)
        for p in ([stages] if stages else _divisors(num_ranks, max_stages))
        for h in ([shards] if shards else _divisors(num_ranks, max_shards))
        if num_ranks % (p * h) == 0 and data in (0, num_ranks // (p * h))
    ]
    if not candidates:
        raise GridError(
            f"grid: {requested} does not fit {num_ranks} rank(s): the product of data, stages and shards must be the "
            f"number of ranks, with at most {max_stages} stages and {max_shards} shards for this model; change the "
            "sizes, leave one of them out, or start another number of ranks"
        )

    def preference(shape: GridShape) -> tuple[bool, int, int, int]:
        model = shape.stages * shape.shards
        small = model * model <= num_ranks
        return (small, model if small else -model, -max(shape.stages, shape.shards), shape.stages)

    return max(candidates, key=preference)


def _divisors(n: int, most: int) -> list[int]:
    return [d for d in range(1, min(n, most) + 1) if n % d == 0]


class ProcessGrid:
    """Place this rank on a grid of data x stages x shards and own the communicators of its axes.

    Rank r sits at data r // (stages*shards), stage (r // shards) % stages, shard r % shards.
    Immutable. All communicators are duplicates that belong to the grid; `free` gives them back.

    Attributes:
        shape: sizes of the axes.
        data_index, stage_index, shard_index: coordinates of this rank.
        world: all ranks of the grid.
        data: ranks with the same model part, along the data axis.
        model: ranks of the same data index (stages x shards).
        stage: ranks with the same data and shard index, along the stages.
        shard: ranks with the same data and stage index, along the shards.
        node: ranks that share memory with this one.
        node_index, num_nodes: which node this is, in order of its lowest rank.
        data_in_node: ranks of `data` on this node.
        data_across: the ranks of `data` with the same index in their node's `data_in_node`, in node order.
        num_owners: the least number of ranks of `data` that any of its nodes holds: that many ranks of a
            node own slices of the gradient.
        is_first_data_node: whether this node holds data index 0 of this model part; of what all nodes hold
            alike, its ranks write checkpoints and count in sums.
    """

    @collective("world")
    def __init__(self, world: MPI.Intracomm, shape: GridShape, ranks_per_node: int = 0) -> None:
        """Make the grid.

        Collective over world.

        Args:
            world: all ranks; duplicated, never communicated on.
            shape: sizes whose product is the size of `world`.
            ranks_per_node: treat this many consecutive ranks as one node; 0 asks MPI.

        Raises:
            GridError: the sizes do not fit.
        """
        if shape.num_ranks != world.Get_size() or min(shape.data, shape.stages, shape.shards) < 1:
            raise GridError(f"grid: {shape} needs {shape.num_ranks} rank(s), received {world.Get_size()}")
        self.shape = shape
        self.world = world.Dup()
        cartesian = self.world.Create_cart([shape.data, shape.stages, shape.shards], reorder=False)
        self.data_index, self.stage_index, self.shard_index = cartesian.Get_coords(cartesian.Get_rank())
        axes = {"data": [True, False, False], "model": [False, True, True]}
        axes |= {"stage": [False, True, False], "shard": [False, False, True]}
        subgrids = {name: cast(MPI.Intracomm, cartesian.Sub(keep)) for name, keep in axes.items()}
        self.data, self.model = subgrids["data"], subgrids["model"]
        self.stage, self.shard = subgrids["stage"], subgrids["shard"]
        self.node = _split_nodes(self.world, ranks_per_node)
        self.node_index, self.num_nodes = _number_nodes(self.world, self.node)
        self.data_in_node = cast(MPI.Intracomm, self.data.Split(self.node_index, self.data.Get_rank()))
        self.data_across = cast(MPI.Intracomm, self.data.Split(self.data_in_node.Get_rank(), self.node_index))
        self.num_owners = int(self.data.allreduce(self.data_in_node.Get_size(), op=MPI.MIN))
        self.is_first_data_node: bool = self.data.bcast(self.node_index, root=0) == self.node_index
        names = ("world", *axes, "node", "data_in_node", "data_across")
        for name in names:
            getattr(self, name).Set_name(f"grid.{name}")
        self._owned = [self.world, cartesian, *subgrids.values(), self.node, self.data_in_node, self.data_across]

    @property
    def rank(self) -> int:
        """Rank of this process in the world."""
        return int(self.world.Get_rank())

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.shape.num_ranks

    @property
    def is_first_stage(self) -> bool:
        """Whether this rank's stage reads the inputs."""
        return self.stage_index == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank's stage computes the loss."""
        return self.stage_index == self.shape.stages - 1

    def rank_at(self, data: int, stage: int, shard: int) -> int:
        """Return the world rank at a place of the grid. Local."""
        return (data * self.shape.stages + stage) * self.shape.shards + shard

    @collective("world")
    def free(self) -> None:
        """Give the communicators back.

        Collective over world. The grid must not be used afterwards.
        """
        for comm in reversed(self._owned):
            comm.Free()
        self._owned.clear()
