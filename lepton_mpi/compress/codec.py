"""Codecs on the C++ kernels. The bytes are specified in docs/wire_format.md."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi import native
from lepton_mpi.errors import CodecError


class Codec(ABC):
    """How fp32 values become the bytes of a payload, and back."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the codec in the configuration."""

    @property
    @abstractmethod
    def number(self) -> int:
        """Number of the codec in the C++ interface and in the wire format."""

    @property
    @abstractmethod
    def block_values(self) -> int:
        """Values that share one scale: a payload may be cut only at multiples of it."""

    @abstractmethod
    def encoded_nbytes(self, n: int) -> int:
        """Return the payload bytes of n values. Local."""

    @abstractmethod
    def encode(self, x: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
        """Write the payload of values to a buffer. Local.

        Args:
            x: float32 [n], contiguous; read only.
            out: uint8 [encoded_nbytes(n)], contiguous, any alignment, apart from x; overwritten.

        Raises:
            CodecError: dtype, size or layout of an array is not as above.
        """

    @abstractmethod
    def decode(self, payload: NDArray[np.uint8], out: NDArray[np.float32], add: bool = False) -> None:
        """Write the values of a payload to a buffer, or add them to it. Local.

        Args:
            payload: uint8 [encoded_nbytes(n)], contiguous, any alignment; read only.
            out: float32 [n], contiguous; overwritten, or added to.
            add: add each value with one fp32 addition.

        Raises:
            CodecError: dtype, size or layout of an array is not as above.
        """


class _NativeCodec(Codec):
    """A codec of the C++ extension; what remains abstract is its name and number."""

    @property
    def block_values(self) -> int:
        return native.codec_block_values(self.number)

    def encoded_nbytes(self, n: int) -> int:
        return native.codec_encoded_nbytes(self.number, n)

    def encode(self, x: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
        self._check(values=x, payload=out)
        _check_writeable("out", out)
        native.codec_encode(self.number, x, out)

    def decode(self, payload: NDArray[np.uint8], out: NDArray[np.float32], add: bool = False) -> None:
        self._check(values=out, payload=payload)
        _check_writeable("out", out)
        native.codec_decode(self.number, payload, out, add)

    def _check(self, values: NDArray[np.float32], payload: NDArray[np.uint8]) -> None:
        _check_array(f"{self.name} values", values, np.dtype(np.float32))
        _check_array(f"{self.name} payload", payload, np.dtype(np.uint8))
        expected = self.encoded_nbytes(values.size)
        if payload.size != expected:
            raise CodecError(
                f"{self.name} payload of {values.size} values: expected {expected} bytes, received {payload.size}; "
                "size the buffer with encoded_nbytes"
            )


@final
class ExactCodec(_NativeCodec):
    """The fp32 values as they are, 4 bytes a value."""

    name = "exact"
    number = 0


@final
class Bf16Codec(_NativeCodec):
    """bfloat16, rounded to nearest even, 2 bytes a value."""

    name = "bf16"
    number = 1


@final
class Int8Codec(_NativeCodec):
    """8-bit integers with one fp32 scale per block of 256 values, 1.016 bytes a value."""

    name = "int8"
    number = 2


def make_codec(name: str) -> Codec:
    """Return the codec of a name: exact, bf16 or int8. Local.

    Raises:
        CodecError: there is no codec of that name.
    """
    for codec in (ExactCodec(), Bf16Codec(), Int8Codec()):
        if codec.name == name:
            return codec
    raise CodecError(f"expected a codec among exact, bf16, int8, received {name!r}; set reduce.mode to one of them")


def _check_array(what: str, array: NDArray[Any], dtype: np.dtype[Any]) -> None:
    received = f"{array.dtype} array of shape {array.shape}"
    if array.dtype != dtype or array.ndim != 1:
        raise CodecError(f"{what}: expected a {dtype} array of 1 dim, received {received}; reshape or convert it")
    if not (array.flags.c_contiguous and array.flags.aligned):
        raise CodecError(f"{what}: expected contiguous, aligned memory, received strides {array.strides} of {received}; copy it")


def _check_writeable(what: str, array: NDArray[Any]) -> None:
    if not array.flags.writeable:
        raise CodecError(f"{what}: expected a writeable array, received a read-only {array.dtype} array of shape {array.shape}")
