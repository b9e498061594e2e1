"""The codecs in NumPy: the same bytes as the C++ kernels, written to be read. Tests hold the kernels against them.

docs/wire_format.md specifies the bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.runtime.random import philox

INT8_BLOCK = 256
INT4_BLOCK = 64
SIGN1_BLOCK = 1024
_INT8_MAX_CODE = np.float32(127)
_INT4_MAX_CODE = np.float32(7)
_TINY = np.finfo(np.float32).tiny
_SIGN1_LANES = 32

# Which integers stand for values given in units of codes, float32 of any shape; see `nearest` and `Stochastic`.
Rounding = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def nearest(units: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round to the nearest integers, ties to even. Local."""
    rounded: NDArray[np.float32] = np.rint(units)
    return rounded


def encode_exact(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the exact payload of float32 [n]. Local."""
    return x.astype("<f4").view(np.uint8)


def decode_exact(payload: NDArray[np.uint8], n: int) -> NDArray[np.float32]:
    """Return the n values of an exact payload. Local."""
    return np.frombuffer(payload.tobytes(), "<f4", n)


def encode_bf16(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the bf16 payload of float32 [n]: the upper halves, rounded to nearest even. Local."""
    bits = x.view(np.uint32)
    upper = bits >> np.uint32(16)
    # The carry of the addition may run into the exponent, up to infinity, as rounding should; it wraps only for NaN.
    rounded = (bits + np.uint32(0x7FFF) + (upper & np.uint32(1))) >> np.uint32(16)
    quiet_nan = upper | np.uint32(0x40)
    return np.where(np.isnan(x), quiet_nan, rounded).astype("<u2").view(np.uint8)


def decode_bf16(payload: NDArray[np.uint8], n: int) -> NDArray[np.float32]:
    """Return the n values of a bf16 payload. Local."""
    halves = np.frombuffer(payload.tobytes(), "<u2", n).astype(np.uint32)
    return (halves << np.uint32(16)).view(np.float32)


def encode_fp16(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the fp16 payload of float32 [n], rounded to nearest even. Local."""
    bits = x.view(np.uint32)
    quiet_nan = ((bits >> np.uint32(16)) & np.uint32(0x8000)) | np.uint32(0x7E00) | ((bits >> np.uint32(13)) & np.uint32(0x3FF))
    with np.errstate(all="ignore"):  # of values that overflow, of subnormals, and of the NaN replaced here
        rounded = x.astype(np.float16).view(np.uint16)
    return np.where(np.isnan(x), quiet_nan, rounded).astype("<u2").view(np.uint8)


def decode_fp16(payload: NDArray[np.uint8], n: int) -> NDArray[np.float32]:
    """Return the n values of an fp16 payload. Local."""
    return np.frombuffer(payload.tobytes(), "<f2", n).astype(np.float32)


def encode_int8(x: NDArray[np.float32], rounding: Rounding = nearest) -> NDArray[np.uint8]:
    """Return the int8 payload of float32 [n]: the scales of all blocks, then the codes. Local."""
    blocks = _blocks(x, INT8_BLOCK)
    amax = np.abs(blocks).max(axis=1, initial=0)
    with np.errstate(all="ignore"):  # what these give for blocks that are not sent is not used
        scale = amax / _INT8_MAX_CODE
        codes_per_unit = _INT8_MAX_CODE / amax
    codes = _codes(blocks, amax, scale, codes_per_unit, rounding)
    return np.concatenate([_sent_scale(amax, scale).astype("<f4").view(np.uint8), codes.reshape(-1)[: x.size].view(np.uint8)])


def decode_int8(payload: NDArray[np.uint8], n: int) -> NDArray[np.float32]:
    """Return the n values of an int8 payload. Local."""
    num_blocks = -(-n // INT8_BLOCK)
    scale = np.frombuffer(payload[: 4 * num_blocks].tobytes(), "<f4")
    codes = payload[4 * num_blocks :].view(np.int8).astype(np.float32)
    with np.errstate(over="ignore"):  # see docs/wire_format.md on the largest values
        values: NDArray[np.float32] = codes * np.repeat(scale, INT8_BLOCK)[:n]
    return values


def encode_int4(x: NDArray[np.float32], rounding: Rounding = nearest) -> NDArray[np.uint8]:
    """Return the int4 payload of float32 [n]: the bfloat16 scales, then bytes of values j and j + 32 of a block. Local."""
    blocks = _blocks(x, INT4_BLOCK)
    amax = np.abs(blocks).max(axis=1, initial=0)
    with np.errstate(all="ignore"):
        unrounded = amax / _INT4_MAX_CODE
        scale = ((unrounded.view(np.uint32) + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)).view(np.float32)
        codes_per_unit = np.float32(1) / scale
    codes = _codes(blocks, amax, unrounded, codes_per_unit, rounding).view(np.uint8)
    half = INT4_BLOCK // 2
    bytes_ = (codes[:, :half] & np.uint8(15)) | (codes[:, half:] << np.uint8(4))
    num_bytes = half * (x.size // INT4_BLOCK) + min(x.size % INT4_BLOCK, half)
    upper = (_sent_scale(amax, np.where(unrounded < _TINY, np.float32(0), scale)).view(np.uint32) >> np.uint32(16)).astype("<u2")
    return np.concatenate([upper.view(np.uint8), bytes_.reshape(-1)[:num_bytes]])


def decode_int4(payload: NDArray[np.uint8], n: int) -> NDArray[np.float32]:
    """Return the n values of an int4 payload. Local."""
    num_blocks = -(-n // INT4_BLOCK)
    upper = np.frombuffer(payload[: 2 * num_blocks].tobytes(), "<u2").astype(np.uint32)
    scale = (upper << np.uint32(16)).view(np.float32)
    bytes_ = np.zeros((num_blocks, INT4_BLOCK // 2), np.uint8)
    bytes_.reshape(-1)[: payload.size - 2 * num_blocks] = payload[2 * num_blocks :]
    nibbles = np.concatenate([bytes_ & np.uint8(15), bytes_ >> np.uint8(4)], axis=1).astype(np.float32)
    codes = np.where(nibbles > 7, nibbles - np.float32(16), nibbles)
    with np.errstate(over="ignore"):
        values: NDArray[np.float32] = (codes * scale[:, None]).reshape(-1)[:n]
    return values


def encode_sign1(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the sign1 payload of float32 [n]: the means of the magnitudes, then the sign bits. Local."""
    blocks = _blocks(x, SIGN1_BLOCK)
    count = np.minimum(x.size - SIGN1_BLOCK * np.arange(len(blocks)), SIGN1_BLOCK).astype(np.float32)
    with np.errstate(all="ignore"):  # a sum that overflows makes a block of NaN
        lanes = np.zeros((len(blocks), _SIGN1_LANES), np.float32)
        for part in np.split(np.abs(blocks), SIGN1_BLOCK // _SIGN1_LANES, axis=1):
            lanes += part
        while lanes.shape[1] > 1:
            lanes = lanes[:, : lanes.shape[1] // 2] + lanes[:, lanes.shape[1] // 2 :]
        total = lanes[:, 0]
        scale = total / count
    sent = np.isfinite(total) & (scale >= _TINY)
    signs = np.signbit(blocks) & sent[:, None]
    bits = np.packbits(signs.reshape(-1)[: x.size], bitorder="little")
    return np.concatenate([_sent_scale(total, scale).astype("<f4").view(np.uint8), bits])


def decode_sign1(payload: NDArray[np.uint8], n: int) -> NDArray[np.float32]:
    """Return the n values of a sign1 payload. Local."""
    num_blocks = -(-n // SIGN1_BLOCK)
    scale = np.repeat(np.frombuffer(payload[: 4 * num_blocks].tobytes(), "<f4"), SIGN1_BLOCK)[:n]
    negative = np.unpackbits(payload[4 * num_blocks :], count=n, bitorder="little")
    return np.where(negative, -scale, scale)


class Stochastic:
    """Rounding up or down at random, by Philox words keyed by the global number of an element."""

    def __init__(self, *, seed: int, step: int, rank: int, phase: int, first_element: int, max_code: int) -> None:
        """Take the key of `native.codec_encode_stochastic`, and the largest code: 127 or 7. Local."""
        self._seed = seed
        self._stream = step | (rank << 8 | phase) << 32
        self._first_counter = first_element // 4
        self._max_code = np.float32(max_code)

    def __call__(self, units: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the codes of values in units of codes, [blocks, values of a block]. Local."""
        clipped = np.clip(units, -self._max_code, self._max_code)
        floor = np.floor(clipped)
        counters = np.arange(self._first_counter, self._first_counter + units.size // 4, dtype=np.uint64)
        words = philox(self._seed, counters, self._stream).reshape(units.shape)
        draw = (words >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
        return np.where(draw < clipped - floor, floor + np.float32(1), floor)


class Reference(NamedTuple):
    """The two functions of a codec."""

    encode: Callable[[NDArray[np.float32]], NDArray[np.uint8]]
    decode: Callable[[NDArray[np.uint8], int], NDArray[np.float32]]


REFERENCES = {
    "exact": Reference(encode_exact, decode_exact),
    "bf16": Reference(encode_bf16, decode_bf16),
    "fp16": Reference(encode_fp16, decode_fp16),
    "int8": Reference(encode_int8, decode_int8),
    "int4": Reference(encode_int4, decode_int4),
    "sign1": Reference(encode_sign1, decode_sign1),
}


def encode_with_feedback(
    name: str, g: NDArray[np.float32], residual: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return the payload of g + residual and the residual that remains, both of float32 [n]. Local.

    The residual of a value whose block is NaN, or that was rounded to infinity, stays as it was.
    """
    with np.errstate(all="ignore"):
        x = g + residual
        payload = REFERENCES[name].encode(x)
        rest = x - REFERENCES[name].decode(payload, x.size)
    return payload, np.where(np.isfinite(rest), rest, residual)


def _codes(
    blocks: NDArray[np.float32],
    amax: NDArray[np.float32],
    scale: NDArray[np.float32],
    codes_per_unit: NDArray[np.float32],
    rounding: Rounding,
) -> NDArray[np.int8]:
    """Return the codes of blocks [blocks, values]; zeros in blocks that are not finite or of subnormal scale."""
    sent = (np.isfinite(amax) & (scale >= _TINY))[:, None]
    with np.errstate(all="ignore"):
        units = np.where(sent, blocks * codes_per_unit[:, None], np.float32(0))
    return rounding(units).astype(np.int8)


def _sent_scale(largest: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the scales as sent: NaN for a block that is not finite, zero for one below the smallest normal."""
    finite = np.isfinite(largest)
    return np.where(finite & (scale >= _TINY), scale, np.where(finite, np.float32(0), np.float32(np.nan)))


def _blocks(x: NDArray[np.float32], block: int) -> NDArray[np.float32]:
    """Return the values in rows of one block, the last one filled up with zeros, which change no maximum and no sum."""
    num_blocks = -(-x.size // block)
    filled = np.zeros(num_blocks * block, np.float32)
    filled[: x.size] = x
    return filled.reshape(num_blocks, block)
