"""What the gradient exchange computes, in NumPy: the specification that tests hold the C++ engine to, bit for bit.

1. Inside a node, gradients are added in rank order.
2. A bucket is cut into one slice for each of the first `num_owners` ranks of every node, and a slice into one
   piece a node, both at multiples of the codec block.
3. Reduce-scatter: every node sends each other node its piece of the sum, encoded. A node adds what it decodes
   in node order; its own part takes its place unencoded, since it does not travel.
4. All-gather: each node encodes its reduced piece once, sends it to all, and goes on with the decoded
   values itself. So all nodes end with the same bytes.

With one node nothing travels and nothing is encoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.grid import ProcessGrid
from lepton_mpi.compress.reference import decode_bf16, decode_int8, encode_bf16, encode_int8
from lepton_mpi.parallel.ownership import part


def reduce_nodes(nodes: Sequence[Sequence[NDArray[np.float32]]], mode: str, bounds: Sequence[int]) -> NDArray[np.float32]:
    """Return the sum of all gradients as every node ends up with it. Local.

    Args:
        nodes: the gradients, float32 [n] each, of the data ranks of each node, both in order; nodes may differ in ranks.
        mode: exact, bf16 or int8: how values travel between nodes.
        bounds: where buckets begin, and the end: n.
    """
    num_owners = min(len(ranks) for ranks in nodes)
    sums = [_add_in_order(ranks) for ranks in nodes]
    if len(nodes) == 1:
        return sums[0]
    total = np.empty_like(sums[0])
    for bucket in pairwise(bounds):
        for owner in range(num_owners):
            owned = part(bucket, num_owners, owner)
            for node in range(len(nodes)):
                start, stop = part(owned, len(nodes), node)
                total[start:stop] = _reduce_piece([values[start:stop] for values in sums], node, mode)
    return total


@collective("grid.data")
def exchange_reference(grid: ProcessGrid, grad: NDArray[np.float32], mode: str, bounds: Sequence[int]) -> NDArray[np.float32]:
    """Return the sum of the gradients of grid.data, whole on every rank.

    Collective over grid.data. Slow and simple: everybody gathers everything.

    Args:
        grid: the process grid.
        grad: this rank's gradient, float32 [n]; not changed.
        mode: see `reduce_nodes`.
        bounds: see `reduce_nodes`.
    """
    homes: list[int] = grid.data.allgather(grid.node_index)
    grads = np.empty((len(homes), grad.size), np.float32)
    grid.data.Allgather(np.ascontiguousarray(grad), grads)
    nodes = [[grads[rank] for rank, home in enumerate(homes) if home == node] for node in sorted(set(homes))]
    return reduce_nodes(nodes, mode, bounds)


def _reduce_piece(sums: Sequence[NDArray[np.float32]], node: int, mode: str) -> NDArray[np.float32]:
    """Return the piece that `node` reduces, as it leaves it for all nodes."""
    received = [values if sender == node else _travel(values, mode) for sender, values in enumerate(sums)]
    return _travel(_add_in_order(received), mode)


def _travel(x: NDArray[np.float32], mode: str) -> NDArray[np.float32]:
    """Return what is decoded at the other end."""
    if mode == "bf16":
        return decode_bf16(encode_bf16(x), x.size)
    if mode == "int8":
        return decode_int8(encode_int8(x), x.size)
    return x


def _add_in_order(terms: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    total = terms[0].copy()
    with np.errstate(over="ignore", invalid="ignore"):  # infinities and NaN are results like others
        for term in terms[1:]:
            total += term
    return total
