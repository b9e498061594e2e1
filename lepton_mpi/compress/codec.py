"""Codecs on the C++ kernels. The bytes are specified in docs/wire_format.md."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi import native
from lepton_mpi.compress.modes import codec_number
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

    @abstractmethod
    def encode_with_feedback(self, g: NDArray[np.float32] | None, residual: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
        """Write the payload of x = g + residual, and set the residual to x minus what the payload decodes to. Local.

        The residual of a block with a NaN or an infinity in x stays as it was, and so does that of a value that was rounded
        to infinity. Source: Seide et al., "1-bit stochastic gradient descent", Interspeech 2014.

        Args:
            g: float32 [n], contiguous; read only; None: zeros.
            residual: float32 [n], contiguous, apart from g; updated.
            out: uint8 [encoded_nbytes(n)], contiguous, any alignment; overwritten.

        Raises:
            CodecError: dtype, size or layout of an array is not as above.
        """


class StochasticKey(NamedTuple):
    """Which random numbers a stochastic encoding takes."""

    seed: int  # 64 bits, see `runtime.random.random_key`
    step: int  # below 2^32
    rank: int  # below 2^24
    phase: int  # of the exchange, below 2^8


class _NativeCodec(Codec):
    """A codec of the C++ extension; what remains abstract is its name."""

    @property
    def number(self) -> int:
        return codec_number(self.name)

    @property
    def block_values(self) -> int:
        return native.codec_block_values(self.number)

    def encoded_nbytes(self, n: int) -> int:
        return native.codec_encoded_nbytes(self.number, n)

    def encode(self, x: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
        self._check(values=x, payload=out)
        check_writeable("out", out)
        native.codec_encode(self.number, x, out)

    def decode(self, payload: NDArray[np.uint8], out: NDArray[np.float32], add: bool = False) -> None:
        self._check(values=out, payload=payload)
        check_writeable("out", out)
        native.codec_decode(self.number, payload, out, add)

    def encode_with_feedback(self, g: NDArray[np.float32] | None, residual: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
        self._check(values=residual, payload=out)
        if g is not None:
            self._check(values=g, payload=out)
            if g.size != residual.size:
                raise CodecError(f"{self.name} residual: expected the gradient's {g.size} values, received {residual.size}")
            if np.may_share_memory(g, residual):
                raise CodecError(f"{self.name} residual: expected memory apart from the gradient's, received the same; copy one")
        check_writeable("residual", residual)
        check_writeable("out", out)
        native.codec_encode_with_feedback(self.number, g, residual, out)

    def _check(self, values: NDArray[np.float32], payload: NDArray[np.uint8]) -> None:
        check_array(f"{self.name} values", values, np.dtype(np.float32))
        check_array(f"{self.name} payload", payload, np.dtype(np.uint8))
        expected = self.encoded_nbytes(values.size)
        if payload.size != expected:
            raise CodecError(
                f"{self.name} payload of {values.size} values: expected {expected} bytes, received {payload.size}; "
                "size the buffer with encoded_nbytes"
            )


class _StochasticCodec(_NativeCodec):
    """A codec that can round at random."""

    def encode_stochastic(self, x: NDArray[np.float32], out: NDArray[np.uint8], key: StochasticKey, first_element: int) -> None:
        """Write a payload whose decoded values are x in the mean over random numbers. Local.

        Each code is rounded up or down by a Philox word of the key and of the global number of the value, so the
        bytes do not depend on how a tensor is cut at blocks.

        Args:
            x: float32 [n], contiguous; read only.
            out: uint8 [encoded_nbytes(n)], contiguous, any alignment, apart from x; overwritten.
            key: what the random numbers depend on beside the element.
            first_element: global number of x[0], a multiple of the block.

        Raises:
            CodecError: dtype, size or layout of an array is not as above, or a number is out of its range.
        """
        self._check(values=x, payload=out)
        check_writeable("out", out)
        limits = StochasticKey(seed=1 << 64, step=1 << 32, rank=1 << 24, phase=1 << 8)
        for field, value, limit in zip(StochasticKey._fields, key, limits, strict=True):
            if not 0 <= value < limit:
                raise CodecError(f"{field} of a stochastic key: expected 0 to {limit - 1}, received {value}")
        if first_element < 0 or first_element % self.block_values != 0:
            raise CodecError(f"first element: expected a multiple of the block, {self.block_values}, received {first_element}")
        native.codec_encode_stochastic(self.number, x, out, **key._asdict(), first_element=first_element)


@final
class ExactCodec(_NativeCodec):
    """The fp32 values as they are, 4 bytes a value."""

    name = "exact"


@final
class Bf16Codec(_NativeCodec):
    """bfloat16, rounded to nearest even, 2 bytes a value."""

    name = "bf16"


@final
class Int8Codec(_StochasticCodec):
    """8-bit integers with one fp32 scale per block of 256 values, 1.016 bytes a value."""

    name = "int8"


@final
class Fp16Codec(_NativeCodec):
    """IEEE 754 binary16, rounded to nearest even, 2 bytes a value; values from 65520 on become infinite."""

    name = "fp16"


@final
class Int4Codec(_StochasticCodec):
    """4-bit integers with one bfloat16 scale per block of 64 values, 0.531 bytes a value."""

    name = "int4"


@final
class Sign1Codec(_NativeCodec):
    """Signs with one fp32 scale per block of 1024 values, the mean of their magnitudes, 0.129 bytes a value.

    Only with error feedback does a sum of such payloads follow the sum of the values.
    """

    name = "sign1"


CODECS: tuple[Codec, ...] = (ExactCodec(), Bf16Codec(), Fp16Codec(), Int8Codec(), Int4Codec(), Sign1Codec())


def make_codec(name: str) -> Codec:
    """Return the codec of a name: exact, bf16, fp16, int8, int4 or sign1. Local.

    Top-k and PowerSGD have payloads and state of their own: `compress.topk`, `compress.powersgd`; see `compress.modes`.

    Raises:
        CodecError: there is no codec of that name.
    """
    for codec in CODECS:
        if codec.name == name:
            return codec
    names = ", ".join(codec.name for codec in CODECS)
    raise CodecError(f"expected a codec among {names}, received {name!r}; set reduce.mode to one of them")


def check_array(what: str, array: NDArray[Any], dtype: np.dtype[Any]) -> None:
    """Require a contiguous, aligned array of one dim.

    Raises:
        CodecError: it is not.
    """
    received = f"{array.dtype} array of shape {array.shape}"
    if array.dtype != dtype or array.ndim != 1:
        raise CodecError(f"{what}: expected a {dtype} array of 1 dim, received {received}; reshape or convert it")
    if not (array.flags.c_contiguous and array.flags.aligned):
        raise CodecError(f"{what}: expected contiguous, aligned memory, received strides {array.strides} of {received}; copy it")


def check_writeable(what: str, array: NDArray[Any]) -> None:
    """Require a writeable array.

    Raises:
        CodecError: it is not.
    """
    if not array.flags.writeable:
        raise CodecError(f"{what}: expected a writeable array, received a read-only {array.dtype} array of shape {array.shape}")
