"""Top-k payloads in NumPy: the same bytes as the C++ kernels, written to be read."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK = 65536
_SMALLEST_SENT = np.float32(2.0**-112)  # below it, the scale would be subnormal


def encode(x: NDArray[np.float32], threshold: float) -> NDArray[np.uint8]:
    """Return the payload of the values that reach a threshold; of all values where that takes fewer bytes. Local."""
    starts = range(0, x.size, BLOCK)
    scales = [_scale(x[start : start + BLOCK]) for start in starts]
    blocks = []
    num_sent = 0
    for start, scale in zip(starts, scales, strict=True):
        block = x[start : start + BLOCK]
        sent = np.flatnonzero(np.abs(block) >= np.float32(threshold)) if scale > 0 else np.zeros(0, np.int64)
        num_sent += sent.size
        header = [np.array([sent.size], "<u4").view(np.uint8), np.array([scale], "<f4").view(np.uint8)]
        blocks += [*header, sent.astype("<u2").view(np.uint8), _codes(block[sent], scale)]
    sparse = np.concatenate([np.zeros(4, np.uint8), *blocks])
    if num_sent == 0 or sparse.size <= 4 + 4 * len(scales) + 2 * x.size:
        return sparse
    values = [_codes(x[start : start + BLOCK], scale) for start, scale in zip(starts, scales, strict=True)]
    return np.concatenate([np.array([1, 0, 0, 0], np.uint8), np.array(scales, "<f4").view(np.uint8), *values])


def decode(payload: NDArray[np.uint8], n: int) -> NDArray[np.float32]:
    """Return the n values of a payload. Local."""
    memory = payload.tobytes()
    out = np.zeros(n, np.float32)
    at = 4
    dense = memory[0] == 1
    for block, start in enumerate(range(0, n, BLOCK)):
        values = out[start : start + BLOCK]
        if dense:
            scale = np.frombuffer(memory, "<f4", 1, 4 + 4 * block)[0]
            values[:] = np.frombuffer(memory, "<f2", values.size, 4 + 4 * -(-n // BLOCK) + 2 * start).astype(np.float32) * scale
            continue
        count = int(np.frombuffer(memory, "<u4", 1, at)[0])
        scale = np.frombuffer(memory, "<f4", 1, at + 4)[0]
        values[:] = np.nan if np.isnan(scale) else 0
        indices = np.frombuffer(memory, "<u2", count, at + 8)
        values[indices] = np.frombuffer(memory, "<f2", count, at + 8 + 2 * count).astype(np.float32) * scale
        at += 8 + 4 * count
    return out


def _scale(block: NDArray[np.float32]) -> np.float32:
    """Return the power of two that brings the largest magnitude into [2^14, 2^15); 0 or NaN where nothing is sent."""
    largest = np.abs(block).max()
    if not np.isfinite(largest):
        return np.float32(np.nan)
    if largest < _SMALLEST_SENT:
        return np.float32(0)
    return np.float32(2.0 ** (int(np.frexp(largest)[1]) - 15))


def _codes(values: NDArray[np.float32], scale: np.float32) -> NDArray[np.uint8]:
    """Return the binary16 bytes of values in units of the scale; zeros where nothing is sent."""
    if not scale > 0:
        return np.zeros(2 * values.size, np.uint8)
    return (values / scale).astype("<f2").view(np.uint8)
