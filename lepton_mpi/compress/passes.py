"""The passes over memory that a codec makes, for whoever wants to time them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.compress import topk
from lepton_mpi.compress.codec import make_codec
from lepton_mpi.compress.modes import TOPK


@dataclass(frozen=True)
class Passes:
    """What is done to an array on its way.

    Attributes:
        encode, decode_add, decode: one pass each; a decoding leaves its values in the array.
        ratio: bytes of float32 in one byte of the payload.
    """

    encode: Callable[[], None]
    decode_add: Callable[[], None]
    decode: Callable[[], None]
    ratio: float


def codec_passes(name: str, values: NDArray[np.float32], share: float) -> Passes:
    """Return the passes of a codec over an array. Local.

    Args:
        name: of the codec, see `compress.modes`.
        values: float32 [n], contiguous; changed by decoding.
        share: of the values that topk sends.

    Raises:
        CodecError: there is no such codec.
    """
    if name != TOPK:
        codec = make_codec(name)
        payload = np.empty(codec.encoded_nbytes(values.size), np.uint8)
        return Passes(
            encode=lambda: codec.encode(values, payload),
            decode_add=lambda: codec.decode(payload, values, add=True),
            decode=lambda: codec.decode(payload, values),
            ratio=values.nbytes / payload.size,
        )
    room = np.empty(topk.max_nbytes(values.size), np.uint8)
    sent = room[: topk.encode(values, share, room)].copy()

    def encode() -> None:
        topk.encode(values, share, room)

    return Passes(
        encode=encode,
        decode_add=lambda: topk.decode(sent, values, add=True),
        decode=lambda: topk.decode(sent, values),
        ratio=values.nbytes / sent.size,
    )
