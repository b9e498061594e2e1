"""Counter-based random numbers: Philox4x32-10 over arrays of counters.

A number depends on its key and its counter alone, never on a rank, on the order of calls, or
on hidden generator state, so any grid draws the same numbers.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC11.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))  # Philox4x32, table 2 of the paper
_WEYL = (0x9E3779B9, 0xBB67AE85)  # golden ratio and sqrt(3)-1, section 4 of the paper
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def random_key(seed: int, *purpose: str | int) -> int:
    """Return the 64-bit key of a purpose under a seed, e.g. `random_key(7, "init", name)`. Local."""
    text = "\0".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def philox(key: int, counter: NDArray[np.uint64], stream: NDArray[np.uint64] | int = 0) -> NDArray[np.uint32]:
    """Return four random 32-bit words for every (counter, stream) under a key. Local.

    Args:
        key: 64-bit key, see `random_key`.
        counter: uint64 array, any shape.
        stream: uint64 array that broadcasts against `counter`, or one number; the upper half of
            the 128-bit counter.

    Returns:
        uint32 array of the broadcast shape plus a last dim of 4.
    """
    counter, upper = np.broadcast_arrays(np.asarray(counter, np.uint64), np.asarray(stream, np.uint64))
    c0, c1 = counter & _LOW, counter >> _HALF
    c2, c3 = upper & _LOW, upper >> _HALF
    k0, k1 = key & 0xFFFFFFFF, (key >> 32) & 0xFFFFFFFF
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> _HALF) ^ c1 ^ np.uint64(k0), p1 & _LOW, (p0 >> _HALF) ^ c3 ^ np.uint64(k1), p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def uniform(key: int, start: int, count: int) -> NDArray[np.float32]:
    """Return elements `start .. start+count` of the key's stream of floats in [0, 1). Local.

    Element i is word i % 4 of counter i // 4, scaled by 2^-24 from its upper 24 bits: exact
    in float32, so equal on every machine.
    """
    first, last = start // 4, -(-(start + count) // 4)
    words = philox(key, np.arange(first, last, dtype=np.uint64)).reshape(-1)[start - 4 * first :][:count]
    return (words >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def normal(key: int, start: int, count: int) -> NDArray[np.float32]:
    """Return elements `start .. start+count` of the key's stream of standard normal floats. Local.

    Elements 2i and 2i + 1 come from the uniform elements 2i and 2i + 1 by Box and Muller (1958), computed in
    float64 and rounded once.
    """
    first, last = start // 2, -(-(start + count) // 2)
    pairs = uniform(key, 2 * first, 2 * (last - first)).astype(np.float64).reshape(-1, 2)
    radius = np.sqrt(-2.0 * np.log(1.0 - pairs[:, 0]))  # 1 - u is in (0, 1]
    angle = 2.0 * np.pi * pairs[:, 1]
    both = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
    return both[start - 2 * first :][:count].astype(np.float32)
