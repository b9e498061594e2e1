"""Top-k: only the values of largest magnitude travel, what stays behind waits in a residual.

Source: Lin et al., "Deep gradient compression", ICLR 2018 (momentum correction, factor masking, warm-up); thresholds
that are reused for many steps: Li, Hoefler, "Near-optimal sparse allreduce", PPoPP 2022. docs/wire_format.md specifies
the payload.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lepton_mpi import native
from lepton_mpi.compress.codec import check_array, check_writeable
from lepton_mpi.compress.feedback import Residuals
from lepton_mpi.errors import CodecError

SAMPLE_VALUES = 65536


class Sent(NamedTuple):
    """What an encoding wrote."""

    nbytes: int
    num_values: int


@dataclass
class _Threshold:
    value: float
    share: float
    age: int = 0


def max_nbytes(n: int) -> int:
    """Return the most bytes that a payload of n values takes. Local."""
    return native.topk_max_nbytes(n)


def sampled_threshold(x: NDArray[np.float32], share: float) -> float:
    """Return a threshold that about this share of the values reaches, from a sample of at most 65536 of them. Local.

    Args:
        x: float32 [n]; non-finite values do not count.
        share: in (0, 1].

    Returns:
        A positive number: zeros never reach it.
    """
    return native.topk_threshold(np.ascontiguousarray(x[:: sample_stride(x.size)]), share)


def sample_stride(n: int) -> int:
    """Return the distance of the values in a sample; odd, so that it meets all columns of most matrices. Local."""
    return -(-n // SAMPLE_VALUES) | 1


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


class Topk:
    """Encodes the gradients of one rank, with residuals, velocities and thresholds by parameter name."""

    def __init__(self, share: float, *, momentum: float | None = None, reuse_steps: int = 64) -> None:
        """Start with zero residuals. Local.

        Args:
            share: part of the values to send, in (0, 1].
            momentum: factor of momentum correction, for an optimizer without momentum of its own; None: feedback only.
            reuse_steps: encodings that use one threshold; one that sends less than half or more than twice the
                share wanted ends its use at once.

        Raises:
            CodecError: a number is out of its range.
        """
        if not 0 < share <= 1:
            raise CodecError(f"top-k share: expected a number in (0, 1], received {share}")
        if momentum is not None and not 0 <= momentum < 1:
            raise CodecError(f"top-k momentum: expected a number in [0, 1), received {momentum}")
        if reuse_steps < 1:
            raise CodecError(f"top-k steps that reuse a threshold: expected at least 1, received {reuse_steps}")
        self.share = share
        self.momentum = momentum
        self.reuse_steps = reuse_steps
        self.residuals = Residuals()
        self.velocities = Residuals()
        self._thresholds: dict[str, _Threshold] = {}

    def encode(self, name: str, g: NDArray[np.float32], out: NDArray[np.uint8], share: float | None = None) -> Sent:
        """Write the payload of the largest values of g plus the residual, and keep the rest. Local.

        Args:
            name: of the parameter.
            g: float32 [n]; read only.
            out: uint8 [max_nbytes(n)] or more; its start is overwritten.
            share: in place of the declared one, for warm-up.

        Returns:
            The bytes of the payload, and how many values reached the threshold.

        Raises:
            CodecError: dtype, size or layout of an array is not as above.
        """
        check_array("top-k values", g, np.dtype(np.float32))
        check_array("top-k payload", out, np.dtype(np.uint8))
        check_writeable("out", out)
        if out.size < max_nbytes(g.size):
            raise CodecError(f"top-k payload of {g.size} values: expected {max_nbytes(g.size)} bytes of room, received {out.size}")
        residual = self.residuals.of(name, g.size)
        threshold = self._threshold(name, g, self.share if share is None else share)
        if self.momentum is None:
            sent = Sent(*native.topk_encode_with_feedback(g, residual, threshold.value, out))
        else:
            velocity = self.velocities.of(name, g.size)
            sent = Sent(*native.topk_encode_with_momentum(g, velocity, residual, self.momentum, threshold.value, out))
        threshold.age += 1
        wanted = threshold.share * g.size
        if threshold.age >= self.reuse_steps or not 0.5 * wanted <= sent.num_values <= 2 * wanted:
            del self._thresholds[name]
        return sent

    def _threshold(self, name: str, g: NDArray[np.float32], share: float) -> _Threshold:
        known = self._thresholds.get(name)
        if known is None or known.share != share:
            stride = sample_stride(g.size)
            sample = g[::stride] + self.residuals.of(name, g.size)[::stride]
            if self.momentum is not None:
                sample += np.float32(self.momentum) * self.velocities.of(name, g.size)[::stride]
            known = self._thresholds[name] = _Threshold(native.topk_threshold(sample, share), share)
        return known
