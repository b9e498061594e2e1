"""Sums in the order of one tree, whoever holds the terms.

The terms of a sum are the leaves of a binary tree that depends on their number alone: a node of n leaves has the largest power
of two below n to its left. A rank that holds consecutive leaves adds up what makes whole nodes; the others finish the sum
from these nodes. The additions are the same ones however the leaves are spread, and so are the bits of the sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def whole_nodes(first: int, last: int, num_leaves: int) -> list[tuple[int, int]]:
    """Return the largest nodes of the tree that leaves [first, last) make up, in order. Local."""
    return _nodes_within(first, last, 0, num_leaves)


def add_leaves(leaves: Sequence[Any], first: int, num_leaves: int) -> list[Any]:
    """Return the values of the whole nodes that consecutive leaves make up. Local.

    Args:
        leaves: arrays of one shape, or numbers. Sums may be left in the arrays: whoever needs them hands in copies.
        first: number of the first of them.
        num_leaves: leaves of the tree.

    Returns:
        One value for each of `whole_nodes`; a leaf itself where it is a node.
    """
    nodes = whole_nodes(first, first + len(leaves), num_leaves)
    return [_add({(first + i, first + i + 1): leaf for i, leaf in enumerate(leaves)}, *node) for node in nodes]


def add_nodes(values: Sequence[Any], spread: Sequence[tuple[int, int]], num_leaves: int) -> Any:
    """Return the sum of all leaves from the nodes that several holders made. Local.

    Args:
        values: what `add_leaves` returned to each holder, one after the other.
        spread: first and last + 1 of the leaves of each holder, in order, [0, num_leaves) in all.
        num_leaves: leaves of the tree.
    """
    nodes = [node for first, last in spread for node in whole_nodes(first, last, num_leaves)]
    return _add(dict(zip(nodes, values, strict=True)), 0, num_leaves)


def _middle(low: int, high: int) -> int:
    """Return where a node of at least two leaves is divided."""
    return low + (1 << ((high - low - 1).bit_length() - 1))


def _nodes_within(first: int, last: int, low: int, high: int) -> list[tuple[int, int]]:
    if last <= low or high <= first:
        return []
    if first <= low and high <= last:
        return [(low, high)]
    middle = _middle(low, high)
    return _nodes_within(first, last, low, middle) + _nodes_within(first, last, middle, high)


def _add(known: dict[tuple[int, int], Any], low: int, high: int) -> Any:
    value = known.get((low, high))
    if value is not None:
        return value
    middle = _middle(low, high)
    left = _add(known, low, middle)
    left += _add(known, middle, high)
    return left
