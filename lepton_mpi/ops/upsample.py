"""Nearest-neighbour enlargement of images. Dims: B images, H height, W width, C channels, F factor."""

from __future__ import annotations

from lepton_mpi.ops.array_module import Array, array_module
from lepton_mpi.ops.checks import check_shape


def upsample_nearest(x: Array, factor: int) -> Array:
    """Return images with every pixel repeated F times along both sides. Local.

    Args:
        x: [B, H, W, C]; B may be 0.
        factor: F, positive.

    Returns:
        A new array [B, H F, W F, C].

    Raises:
        ValueError: x has other dims, or the factor is not positive.
    """
    check_shape("x", x, (None, None, None, None))
    _check_factor(factor)
    batch_size, height, width, channels = x.shape
    y: Array = array_module(x).empty((batch_size, height, factor, width, factor, channels), x.dtype)
    y[...] = x[:, :, None, :, None]
    return y.reshape(batch_size, height * factor, width * factor, channels)


def upsample_nearest_backward(dy: Array, factor: int) -> Array:
    """Return dx, the sum of dy over the copies of a pixel. Local.

    Args:
        dy: [B, H F, W F, C].
        factor: F, positive.

    Returns:
        A new array [B, H, W, C].

    Raises:
        ValueError: the shape is not a multiple of the factor, or the factor is not positive.
    """
    check_shape("dy", dy, (None, None, None, None))
    _check_factor(factor)
    batch_size, height, width, channels = dy.shape
    if height % factor or width % factor:
        raise ValueError(f"dy: expected height and width to be multiples of {factor}, received {height} x {width}")
    dx: Array = dy.reshape(batch_size, height // factor, factor, width // factor, factor, channels).sum(axis=(2, 4))
    return dx


def _check_factor(factor: int) -> None:
    if factor < 1:
        raise ValueError(f"factor: expected a positive integer, received {factor}")
