"""Types of the C++ extension. Every function releases the GIL around its work."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

__version__: str
mpi_family: str

def mpi_library_version() -> str: ...

# Codecs: 0 exact, 1 bf16, 2 int8, 3 fp16, 4 int4, 5 sign1; arrays are one-dimensional and contiguous, and never converted.
def codec_block_values(codec: int) -> int: ...
def codec_encoded_nbytes(codec: int, n: int) -> int: ...
def codec_encode(codec: int, x: NDArray[np.float32], out: NDArray[np.uint8]) -> None: ...
def codec_has_stochastic(codec: int) -> bool: ...
def codec_encode_with_feedback(
    codec: int, g: NDArray[np.float32] | None, residual: NDArray[np.float32], out: NDArray[np.uint8]
) -> None: ...
def codec_encode_stochastic(
    codec: int,
    x: NDArray[np.float32],
    out: NDArray[np.uint8],
    *,
    seed: int,
    step: int,
    rank: int,
    phase: int,
    first_element: int,
) -> None: ...
def codec_decode(codec: int, payload: NDArray[np.uint8], out: NDArray[np.float32], add: bool) -> None: ...

# Top-k payloads; arrays are one-dimensional and contiguous, and never converted. Encoders return bytes and values sent.
def low_rank_project_rows(
    shape: tuple[int, int, int],
    x: NDArray[np.float32],
    first: int,
    column_factor: NDArray[np.float32],
    row_factor: NDArray[np.float32],
) -> None: ...
def low_rank_project_columns(
    shape: tuple[int, int, int],
    x: NDArray[np.float32],
    first: int,
    row_factor: NDArray[np.float32],
    column_factor: NDArray[np.float32],
) -> None: ...
def low_rank_rebuild(
    shape: tuple[int, int, int],
    x: NDArray[np.float32],
    first: int,
    row_factor: NDArray[np.float32],
    column_factor: NDArray[np.float32],
    scale: float,
    residual: NDArray[np.float32] | None,
    part: float,
) -> None: ...
def orthogonalise(factor: NDArray[np.float32], rank: int) -> None: ...
def topk_max_nbytes(n: int) -> int: ...
def topk_threshold(x: NDArray[np.float32], share: float) -> float: ...
def topk_sampled_threshold(x: NDArray[np.float32], residual: NDArray[np.float32] | None, share: float) -> float: ...
def topk_encode(x: NDArray[np.float32], threshold: float, out: NDArray[np.uint8]) -> tuple[int, int]: ...
def topk_encode_with_feedback(
    g: NDArray[np.float32] | None, residual: NDArray[np.float32], threshold: float, out: NDArray[np.uint8]
) -> tuple[int, int]: ...
def topk_decode(payload: NDArray[np.uint8], out: NDArray[np.float32], add: bool) -> None: ...

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
def momentum_share(grads: NDArray[np.float32], m: NDArray[np.float32], beta1: float, num_ranks: int) -> None: ...
def frozen_adam_update(
    values: NDArray[np.float32],
    sums: NDArray[np.float32],
    m: NDArray[np.float32],
    v: NDArray[np.float32],
    lr: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    grad_scale: float,
    step: int,
    frozen_step: int,
) -> None: ...
def lamb_direction(
    values: NDArray[np.float32],
    grads: NDArray[np.float32],
    m: NDArray[np.float32],
    v: NDArray[np.float32],
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

# Sums that do not depend on the order of their terms; one-dimensional, contiguous arrays.
def accumulate_rounded(grads: NDArray[np.float32], totals: NDArray[np.float64], unit: float) -> float: ...
def collect_totals(totals: list[NDArray[np.float64]], out: NDArray[np.float32] | NDArray[np.float64]) -> None: ...
def exact_squares(x: NDArray[np.float32], unit: float, low_unit: float) -> tuple[float, float]: ...
def largest_magnitude(x: NDArray[np.float32]) -> float: ...

# Rounding to bfloat16 of one-dimensional, contiguous arrays; out may be x.
def round_to_bf16(x: NDArray[np.float32], out: NDArray[np.float32]) -> None: ...

# Softmax of attention scores [B, H, Q, K] and its backward pass, in place; arrays are contiguous and never converted.
def softmax(scores: NDArray[np.float32], key_mask: NDArray[np.bool_] | None, first_query: int | None, scale: float) -> None: ...
def softmax_backward(dp: NDArray[np.float32], p: NDArray[np.float32], first_query: int | None, scale: float) -> None: ...

# Cross entropy; logits and dlogits are flat [N * num_classes]. Returns loss, weight, num_correct, num_counted.
def softmax_cross_entropy(
    logits: NDArray[np.float32],
    labels: NDArray[np.int64],
    num_classes: int,
    class_weights: NDArray[np.float32] | None,
    label_smoothing: float,
    factor: float,
    dlogits: NDArray[np.float32] | None,
) -> tuple[float, float, int, int]: ...

# Activations; arrays are one-dimensional, contiguous, of one size, and never converted..
def gelu(x: NDArray[np.float32], y: NDArray[np.float32], slope: NDArray[np.float32] | None, approximate: bool) -> None: ...
def silu(x: NDArray[np.float32], y: NDArray[np.float32], slope: NDArray[np.float32] | None) -> None: ...
def swiglu(gate: NDArray[np.float32], up: NDArray[np.float32], y: NDArray[np.float32]) -> None: ...
def swiglu_backward(
    dy: NDArray[np.float32],
    gate: NDArray[np.float32],
    up: NDArray[np.float32],
    dgate: NDArray[np.float32],
    dup: NDArray[np.float32],
    y: NDArray[np.float32],
) -> None: ...
def rotary(
    x: NDArray[np.float32],
    cosines: NDArray[np.float32],
    sines: NDArray[np.float32],
    sign: float,
    y: NDArray[np.float32],
    batch: int,
    positions: int,
    heads: int,
) -> None: ...

# Normalisation of rows; arrays are one-dimensional and contiguous, and never converted.
def layer_norm(
    x: NDArray[np.float32],
    weight: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    y: NDArray[np.float32],
    mean: NDArray[np.float32],
    rstd: NDArray[np.float32],
    epsilon: float,
) -> None: ...
def layer_norm_backward(
    dy: NDArray[np.float32],
    x: NDArray[np.float32],
    weight: NDArray[np.float32],
    mean: NDArray[np.float32],
    rstd: NDArray[np.float32],
    dx: NDArray[np.float32] | None,
    dweight: NDArray[np.float32],
    dbias: NDArray[np.float32] | None,
) -> None: ...
def rms_norm(
    x: NDArray[np.float32],
    weight: NDArray[np.float32],
    y: NDArray[np.float32],
    rstd: NDArray[np.float32],
    epsilon: float,
) -> None: ...
def rms_norm_backward(
    dy: NDArray[np.float32],
    x: NDArray[np.float32],
    weight: NDArray[np.float32],
    rstd: NDArray[np.float32],
    dx: NDArray[np.float32] | None,
    dweight: NDArray[np.float32],
) -> None: ...

# Dropout; masks hold 0 and 1, arrays are one-dimensional and contiguous, and never converted.
def dropout_mask(
    mask: NDArray[np.uint8],
    rows: int,
    key: int,
    step: int,
    first_row: int,
    row_size: int,
    row_start: int,
    threshold: int,
) -> None: ...
def dropout(
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    mask: NDArray[np.uint8],
    scale: float,
    rows: int,
    key: int,
    step: int,
    first_row: int,
    row_size: int,
    row_start: int,
    threshold: int,
) -> None: ...
def apply_mask(x: NDArray[np.float32], mask: NDArray[np.uint8], scale: float, y: NDArray[np.float32]) -> None: ...

# table[ids - first] += rows, in order; ids outside of the table are passed over.
def embedding_add(
    rows: NDArray[np.float32],
    ids: NDArray[np.int64],
    first: int,
    table: NDArray[np.float32],
    features: int,
) -> None: ...

# Windows over images [B, H, W, C]; ranges are (start, stop), kernel to dilation are (height, width); arrays are never converted.
def im2col(
    x: NDArray[np.float32],
    columns: NDArray[np.float32],
    images: tuple[int, int],
    rows: tuple[int, int],
    channels: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> None: ...
def col2im_add(
    columns: NDArray[np.float32],
    dx: NDArray[np.float32],
    images: tuple[int, int],
    rows: tuple[int, int],
    channels: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> None: ...
def max_pool2d(
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    places: NDArray[np.int32],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> None: ...
def max_pool2d_backward_add(dy: NDArray[np.float32], places: NDArray[np.int32], dx: NDArray[np.float32]) -> None: ...
def depthwise_conv2d(
    x: NDArray[np.float32],
    weight: NDArray[np.float32],
    y: NDArray[np.float32],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> None: ...
def depthwise_backward_input_add(
    dx: NDArray[np.float32],
    weight: NDArray[np.float32],
    dy: NDArray[np.float32],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> None: ...
def depthwise_backward_weight_add(
    x: NDArray[np.float32],
    dweight: NDArray[np.float32],
    dy: NDArray[np.float32],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> None: ...

# Batch normalisation of rows [N, C]; arrays are never converted.
def channel_moments(x: NDArray[np.float32], mean: NDArray[np.float64], squares: NDArray[np.float64]) -> None: ...
def channel_affine(
    x: NDArray[np.float32],
    mean: NDArray[np.float32],
    scale: NDArray[np.float32],
    shift: NDArray[np.float32],
    y: NDArray[np.float32],
) -> None: ...
def channel_gradient_sums(
    dy: NDArray[np.float32],
    x: NDArray[np.float32],
    mean: NDArray[np.float64],
    sum_dy: NDArray[np.float64],
    sum_dy_x: NDArray[np.float64],
) -> None: ...
def channel_gradient(
    dy: NDArray[np.float32],
    x: NDArray[np.float32],
    mean: NDArray[np.float32],
    scale: NDArray[np.float32],
    slope: NDArray[np.float32],
    shift: NDArray[np.float32],
    dx: NDArray[np.float32],
) -> None: ...

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
        own_pieces: bool = ...,
        residual: NDArray[np.float32] | None = ...,  # error feedback, as long as the gradients
        exact_until: int = ...,  # buckets up to here are exact whatever the codec
        background: bool = ...,  # a thread makes progress between start and finish
    ) -> None: ...
    @staticmethod
    def signal_nbytes(num_ranks: int, num_buckets: int) -> int: ...
    def start(self, bucket: int) -> None: ...
    def progress(self) -> bool: ...
    def finish(self) -> None: ...
    def publish(self) -> None: ...
    def set_codec(self, codec: int) -> None: ...
    def set_share(self, share: float) -> None: ...
    def set_in_node_from(self, first: int) -> None: ...  # buckets from here on are summed inside the node only
    def done(self, bucket: int) -> bool: ...
    def owned(self, bucket: int) -> tuple[int, int]: ...
    @property
    def num_buckets(self) -> int: ...
    @property
    def stats(self) -> dict[str, float]: ...

# The sum of arrays over all ranks; arrays must not be touched between start and finish.
class AllReduce:
    def __init__(
        self,
        *,
        signals: NDArray[np.uint8],
        staging: NDArray[np.float32],
        peers: int | None,  # Fortran handle of a communicator, of any sign
        rank: int,
        node_ranks: list[int],
        peer_ranks: list[int],
        num_nodes: int,
        num_owners: int,
        chunk_values: int,
        depth: int,
        timeout_s: float,
        spin_s: float,
        background: bool,
        world: int | None = ...,  # likewise; for sum_by_mpi
    ) -> None: ...
    @staticmethod
    def signal_nbytes(num_ranks: int) -> int: ...
    @staticmethod
    def staging_values(num_ranks: int, num_owners: int, chunk_values: int, depth: int) -> int: ...
    @staticmethod
    def slice(size: int, num_owners: int, owner: int) -> tuple[int, int]: ...
    def start(
        self,
        input: NDArray[np.float32] | None,
        output: NDArray[np.float32],
        codec: int,
        residual: NDArray[np.float32] | None,
        scale: float,
        share: float = ...,  # of the values that topk sends
    ) -> int: ...
    # Sums in place by the way that `settle` named for sizes of so many bits; False where nothing was done, since none is named
    # or the array needs a copy.
    @property
    def short_sum(self) -> Callable[[object], bool]: ...
    def settle(self, size: int, by_mpi: bool, scale: float, count: int) -> None: ...
    # Ends that, and returns the seconds that such sums took since it was asked last.
    def unsettle(self, size: int) -> list[float]: ...
    def progress(self) -> bool: ...
    def finish(self, number: int) -> None: ...
    def done(self, number: int) -> bool: ...
    @property
    def sent_nbytes(self) -> int: ...
    @property
    def wait_s(self) -> float: ...

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
