"""Arrays of any kind as flat host memory, which sums work on."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.errors import CodecError


def check_arrays(values: Any, out: Any) -> None:
    """Refuse arrays that cannot be summed. Local.

    Args:
        values: what this rank adds, or None.
        out: what receives the sum.

    Raises:
        CodecError: they are not float32, of different sizes, missing or read-only.
    """
    if out is None:
        raise CodecError("a rank without values of its own must give out, the array that receives the sum")
    for what, array in (("values", values), ("out", out)):
        if array is not None and array.dtype != np.float32:
            raise CodecError(f"{what}: expected a float32 array, received {array.dtype}; convert it")
    if values is not None and values.size != out.size:
        raise CodecError(f"expected out of {values.size} values, as many as are summed, received {out.size}")
    if isinstance(out, np.ndarray) and not out.flags.writeable:
        raise CodecError("out: expected a writeable array, received a read-only one")


def _is_host(array: Any) -> bool:
    return isinstance(array, np.ndarray)


def flat_view(array: Any) -> NDArray[np.float32] | None:
    """Return a flat view, or None where the engine cannot work on the memory itself. Local."""
    if not _is_host(array) or not (array.flags.c_contiguous and array.flags.aligned):
        return None
    return cast(NDArray[np.float32], array.reshape(-1))


def host_buffer(host: NDArray[np.float32] | None, size: int) -> NDArray[np.float32]:
    """Return host memory of a size: what there is, if it fits. Local."""
    return host if host is not None and host.size == size else np.empty(size, np.float32)


def download(values: Any, host: NDArray[np.float32]) -> None:
    """Copy an array of any layout and device to flat host memory. Local."""
    if _is_host(values):
        host.reshape(values.shape)[...] = values
    else:
        values.ravel().get(out=host)  # waits for the current stream


def upload(host: NDArray[np.float32], out: Any) -> None:
    """Copy flat host memory to an array of any layout and device. Local."""
    if _is_host(out):
        out[...] = host.reshape(out.shape)
    else:
        out[...] = _on_device(host, out).reshape(out.shape)


def _on_device(host: NDArray[np.float32], like: Any) -> Any:
    device = type(like)(host.shape, np.float32)
    device.set(host)
    return device
