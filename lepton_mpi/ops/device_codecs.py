"""The gradient codecs on arrays of a GPU: the bytes of the CPU kernels, see docs/wire_format.md."""

from __future__ import annotations

from typing import Any

import numpy as np

from lepton_mpi import native
from lepton_mpi.ops.array_module import Array, array_module
from lepton_mpi.ops.cuda_module import check_device_arrays, launch

EXACT = 0
_WARP = 32


def encode_on_device(codec: int, x: Array, out: Array) -> None:
    """Write the payload of values on the GPU to a buffer there, on the current stream. Local.

    Args:
        codec: number of the codec, as in the wire format.
        x: CuPy float32 [n], contiguous; read only.
        out: CuPy uint8 [payload bytes], contiguous, any alignment; overwritten.

    Raises:
        ValueError: unknown codec, or dtype, size, layout or device of an array is not as above.
    """
    _check(codec, x, out)
    if codec == EXACT:
        out[:] = x.view(np.uint8)
        return
    block = native.codec_block_values(codec)
    num_threads = x.size if block == 1 else _WARP * -(-x.size // block)  # one warp a block
    launch("codec_encode", num_threads, np.int32(codec), x, np.int64(x.size), out)


def decode_on_device(codec: int, payload: Array, out: Array, add: bool = False) -> None:
    """Write the values of a payload on the GPU to a buffer there, or add them to it, on the current stream. Local.

    Args:
        codec: number of the codec, as in the wire format.
        payload: CuPy uint8 [payload bytes], contiguous, any alignment; read only.
        out: CuPy float32 [n], contiguous; overwritten, or added to.
        add: add each value with one fp32 addition.

    Raises:
        ValueError: unknown codec, or dtype, size, layout or device of an array is not as above.
    """
    _check(codec, out, payload)
    if codec == EXACT:
        values: Any = payload.copy().view(np.float32)  # a copy is aligned
        out[:] = out + values if add else values
        return
    launch("codec_decode", out.size, np.int32(codec), payload, np.int64(out.size), np.int32(add), out)


def _check(codec: int, values: Array, payload: Array) -> None:
    expected = native.codec_encoded_nbytes(codec, values.size)
    check_device_arrays(values=values)
    if array_module(payload) is np or payload.dtype != np.uint8 or not payload.flags.c_contiguous:
        raise ValueError(f"payload: expected a contiguous uint8 CuPy array, received {payload.dtype} {type(payload).__name__}")
    if values.ndim != 1 or payload.shape != (expected,):
        shapes = f"values of shape {values.shape} and a payload of shape {payload.shape}"
        raise ValueError(f"codec {codec}: expected values of 1 dim and {expected} bytes of payload, received {shapes}")
