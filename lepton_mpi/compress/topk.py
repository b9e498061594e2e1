"""Top-k: only the values of largest magnitude travel, what stays behind waits in a residual.

Source: Lin et al., "Deep gradient compression", ICLR 2018 (warm-up); two phases with a selection in each: Li, Hoefler,
"Near-optimal sparse allreduce", PPoPP 2022. docs/wire_format.md specifies the payload. The threshold is found afresh in a sample
of every array: it follows from the values alone, so that a run that is resumed goes on with the same bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lepton_mpi import native
from lepton_mpi.compress.codec import check_array, check_writeable
from lepton_mpi.errors import CodecError


def max_nbytes(n: int) -> int:
    """Return the most bytes that a payload of n values takes. Local."""
    return native.topk_max_nbytes(n)


def warm_up_share(share: float, step: int, warm_up_steps: int, stages: int = 4) -> float:
    """Return the share to send during warm-up, falling in equal factors from 1/4 to `share`. Local.

    Args:
        share: the final one.
        step: from 0.
        warm_up_steps: from this step on the share is final.
        stages: how many shares there are before.
    """
    if step >= warm_up_steps or share >= 0.25:
        return share
    stage = step * stages // warm_up_steps
    return float(0.25 * (share / 0.25) ** (stage / stages))


def encode(x: NDArray[np.float32], share: float, out: NDArray[np.uint8]) -> int:
    """Write the payload of about this share of the values, those of largest magnitude. Local.

    Args:
        x: float32 [n]; read only.
        share: in (0, 1].
        out: uint8 [max_nbytes(n)] or more; its start is overwritten.

    Returns:
        The bytes of the payload.

    Raises:
        CodecError: dtype, size or layout of an array is not as above, or the share is out of its range.
    """
    check_array("top-k values", x, np.dtype(np.float32))
    check_array("top-k payload", out, np.dtype(np.uint8))
    check_writeable("out", out)
    if not 0 < share <= 1:
        raise CodecError(f"top-k share: expected a number in (0, 1], received {share}")
    if out.size < max_nbytes(x.size):
        raise CodecError(f"top-k payload of {x.size} values: expected {max_nbytes(x.size)} bytes of room, received {out.size}")
    return native.topk_encode(x, native.topk_sampled_threshold(x, None, share), out)[0]


def decode(payload: NDArray[np.uint8], out: NDArray[np.float32], add: bool = False) -> None:
    """Write the values of a payload to a buffer, zero where none was sent, or add them to it. Local.

    Args:
        payload: uint8 [nbytes], as long as the encoding said; any alignment.
        out: float32 [n].
        add: add each value with one fp32 addition.

    Raises:
        CodecError: an array has another dtype or layout, or the payload is not one of n values.
    """
    check_array("top-k payload", payload, np.dtype(np.uint8))
    check_array("top-k values", out, np.dtype(np.float32))
    check_writeable("out", out)
    try:
        native.topk_decode(payload, out, add)
    except ValueError as error:
        raise CodecError(f"top-k payload of {out.size} values in {payload.size} bytes is damaged or cut: {error}") from error
