"""The codecs in NumPy: the same bytes as the C++ kernels, written to be read. Tests hold the kernels against them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK_VALUES = 256
_MAX_CODE = np.float32(127)


def encode_bf16(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the bf16 payload of float32 [n]: the upper halves, rounded to nearest even. Local."""
    bits = x.view(np.uint32)
    upper = bits >> np.uint32(16)
    # The carry of the addition may run into the exponent, up to infinity, as rounding should; it wraps only for NaN.
    rounded = (bits + np.uint32(0x7FFF) + (upper & np.uint32(1))) >> np.uint32(16)
    quiet_nan = upper | np.uint32(0x40)
    return np.where(np.isnan(x), quiet_nan, rounded).astype("<u2").view(np.uint8)


def decode_bf16(payload: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the values of a bf16 payload. Local."""
    halves = np.frombuffer(payload.tobytes(), "<u2").astype(np.uint32)
    return (halves << np.uint32(16)).view(np.float32)


def encode_int8(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the int8 payload of float32 [n]: the scales of all blocks, then the codes. Local."""
    blocks = _blocks(x)
    amax = np.abs(blocks).max(axis=1, initial=0)
    finite = np.isfinite(amax)
    with np.errstate(all="ignore"):  # what these give for zero and non-finite blocks is replaced below
        scale = amax / _MAX_CODE
        codes = np.rint(blocks * (_MAX_CODE / amax)[:, None])
    sent = finite & (scale >= np.finfo(np.float32).tiny)
    scale = np.where(sent, scale, np.where(finite, np.float32(0), np.float32(np.nan)))
    codes = np.where(sent[:, None], codes, 0).astype(np.int8).reshape(-1)[: x.size]
    return np.concatenate([scale.astype("<f4").view(np.uint8), codes.view(np.uint8)])


def decode_int8(payload: NDArray[np.uint8], n: int) -> NDArray[np.float32]:
    """Return the n values of an int8 payload. Local."""
    num_blocks = -(-n // BLOCK_VALUES)
    scale = np.frombuffer(payload[: 4 * num_blocks].tobytes(), "<f4")
    codes = payload[4 * num_blocks :].view(np.int8).astype(np.float32)
    with np.errstate(over="ignore"):  # see docs/wire_format.md on the largest values
        values: NDArray[np.float32] = codes * np.repeat(scale, BLOCK_VALUES)[:n]
    return values


def _blocks(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the values in rows of one block, the last one filled up with zeros, which change no maximum."""
    num_blocks = -(-x.size // BLOCK_VALUES)
    filled = np.zeros(num_blocks * BLOCK_VALUES, np.float32)
    filled[: x.size] = x
    return filled.reshape(num_blocks, BLOCK_VALUES)
