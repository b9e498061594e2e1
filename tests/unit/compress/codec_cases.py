"""Values and calls that the tests of codecs share."""

import numpy as np

from lepton_mpi.compress.codec import Codec
from lepton_mpi.compress.reference import REFERENCES

TINY = float(np.finfo(np.float32).tiny)
LARGEST = float(np.finfo(np.float32).max)
NONFINITE = [np.inf, -np.inf, np.nan]


def encode(codec: Codec, x: np.ndarray) -> np.ndarray:
    payload = np.full(codec.encoded_nbytes(x.size), 0xA5, np.uint8)
    codec.encode(x, payload)
    return payload


def decode(codec: Codec, payload: np.ndarray, n: int) -> np.ndarray:
    out = np.full(n, 99, np.float32)
    codec.decode(payload, out)
    return out


def reference_encode(codec: Codec, x: np.ndarray) -> np.ndarray:
    return REFERENCES[codec.name].encode(x)


def reference_decode(codec: Codec, payload: np.ndarray, n: int) -> np.ndarray:
    return REFERENCES[codec.name].decode(payload, n)


def bits(values: np.ndarray) -> np.ndarray:
    """Return the bits of float32 values; those of NaN, whose sign and payload arithmetic leaves open, as one pattern."""
    return np.where(np.isnan(values), np.float32(np.nan), values).view(np.uint32)


def mixed_scales(n: int, seed: int = 0) -> np.ndarray:
    """Normal values whose magnitude changes by many orders from block to block."""
    rng = np.random.default_rng(seed)
    exponents = np.repeat(rng.integers(-30, 30, n // 256 + 1), 256)[:n]
    return (rng.standard_normal(n) * 10.0**exponents).astype(np.float32)
