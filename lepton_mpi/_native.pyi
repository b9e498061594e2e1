"""Types of the C++ extension. Every function releases the GIL around its work."""

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

__version__: str
mpi_family: str

def mpi_library_version() -> str: ...

# Codecs: 0 exact, 1 bf16, 2 int8; arrays are one-dimensional and contiguous, and never converted.
def codec_block_values(codec: int) -> int: ...
def codec_encoded_nbytes(codec: int, n: int) -> int: ...
def codec_encode(codec: int, x: NDArray[np.float32], out: NDArray[np.uint8]) -> None: ...
def codec_decode(codec: int, payload: NDArray[np.uint8], out: NDArray[np.float32], add: bool) -> None: ...

# Optimizer updates, in place; arrays are one-dimensional, contiguous, of one size, and never converted.
def adamw_update(
    values: NDArray[np.float32],
    grads: NDArray[np.float32],
    m: NDArray[np.float32],
    v: NDArray[np.float32],
    lr: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    grad_scale: float,
    step: int,
) -> None: ...
def sgd_update(
    values: NDArray[np.float32],
    grads: NDArray[np.float32],
    momentum_buffer: NDArray[np.float32] | None,
    lr: float,
    momentum: float,
    weight_decay: float,
    grad_scale: float,
) -> None: ...
def sum_of_squares(x: NDArray[np.float32]) -> float: ...

# The gradient exchange of one model part; calls are made by one thread.
class Exchange:
    def __init__(
        self,
        *,
        grads: list[NDArray[np.float32]],
        signals: NDArray[np.uint8],
        rank: int,
        num_owners: int,
        peers: int | None,  # Fortran handle of a communicator, of any sign
        codec: int,
        bounds: list[int],
        timeout_s: float,
        spin_s: float,
    ) -> None: ...
    @staticmethod
    def signal_nbytes(num_ranks: int, num_buckets: int) -> int: ...
    def start(self, bucket: int) -> None: ...
    def progress(self) -> bool: ...
    def finish(self) -> None: ...
    def publish(self) -> None: ...
    def owned(self, bucket: int) -> tuple[int, int]: ...
    @property
    def num_buckets(self) -> int: ...
    @property
    def stats(self) -> dict[str, float]: ...

# Memory shared by the processes of a node; supports the buffer protocol. Raises OSError.
class Segment(Buffer):
    @staticmethod
    def create(name: str, nbytes: int) -> Segment: ...
    @staticmethod
    def open(name: str, nbytes: int) -> Segment: ...
    @staticmethod
    def anonymous(nbytes: int) -> Segment: ...
    def unlink(self) -> None: ...
    @property
    def nbytes(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
