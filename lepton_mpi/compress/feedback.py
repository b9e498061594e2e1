"""Error feedback: what a lossy payload leaves out is added to the next gradient.

Source: Seide et al., "1-bit stochastic gradient descent", Interspeech 2014; Karimireddy et al., "Error feedback fixes
SignSGD", ICML 2019.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.compress.codec import Codec
from lepton_mpi.errors import CodecError


class Residuals:
    """The fp32 residuals of parameters by name; zeros at first use."""

    def __init__(self) -> None:
        """Hold none yet. Local."""
        self._arrays: dict[str, NDArray[np.float32]] = {}

    def of(self, name: str, n: int | None = None) -> NDArray[np.float32]:
        """Return the residual of a parameter, float32 [n], to be updated in place. Local.

        Args:
            name: of the parameter.
            n: values of it; None: as before.

        Raises:
            CodecError: it has another size, or none is known.
        """
        residual = self._arrays.get(name)
        if residual is None:
            if n is None:
                raise CodecError(f"gradient of {name!r}: None before any gradient, so its size is unknown; pass zeros")
            residual = self._arrays[name] = np.zeros(n, np.float32)
        if n is not None and residual.size != n:
            raise CodecError(
                f"residual of {name!r}: it has {residual.size} values, the gradient {n}; a name belongs to one parameter"
            )
        return residual

    def state(self) -> dict[str, NDArray[np.float32]]:
        """Return a copy of all residuals by name. Local."""
        return {name: residual.copy() for name, residual in self._arrays.items()}

    def load(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        """Replace all residuals by copies of these. Local."""
        self._arrays = {name: np.array(residual, np.float32) for name, residual in state.items()}


class ErrorFeedback:
    """A codec with the residuals of the parameters that one rank sends."""

    def __init__(self, codec: Codec) -> None:
        """Wrap a codec; residuals are zero. Local."""
        self.codec = codec
        self.residuals = Residuals()

    def encode(self, name: str, g: NDArray[np.float32] | None, out: NDArray[np.uint8]) -> None:
        """Write the payload of g plus the residual, and keep what it leaves out. Local.

        Args:
            name: of the parameter.
            g: float32 [n]; None, where a rank brings no gradient: zeros of the parameter's size, which is then known.
            out: uint8 [encoded_nbytes(n)]; overwritten.

        Raises:
            CodecError: an array does not fit, or no gradient of the parameter was seen before None.
        """
        residual = self.residuals.of(name, None if g is None else g.size)
        self.codec.encode_with_feedback(g, residual, out)

    def release(self, name: str, g: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return g plus the residual, which becomes zero: for a step that is sent exactly. Local."""
        residual = self.residuals.of(name, g.size)
        x = g + residual
        residual[:] = 0
        return x


def pending_residual(workers: Sequence[NDArray[np.float32]], server: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Return what a checkpoint keeps of the residuals of all ranks: the part of the mean gradient not yet delivered. Local.

    r = mean(e_worker) + e_server. A restart on any number of ranks gives r to every rank and zeros to the owners: the
    mean over ranks, and so the sum of all that is delivered in the end, stays the same.

    Args:
        workers: float32 [n] of every rank, those before the first exchange phase, in rank order.
        server: float32 [n] of the owners of slices, put together, in units of the mean gradient; None: zeros.

    Raises:
        CodecError: no ranks, or sizes differ.
    """
    sizes = {residual.size for residual in (*workers, *([] if server is None else [server]))}
    if not workers or len(sizes) > 1:
        raise CodecError(
            f"residuals to merge: expected at least one rank and one size, received sizes {sorted(sizes)} of {len(workers)} ranks"
        )
    total = np.zeros(workers[0].size, np.float64)
    for residual in workers:
        total += residual
    total /= len(workers)
    if server is not None:
        total += server
    return total.astype(np.float32)
