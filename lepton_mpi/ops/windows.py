"""Windows that slide over images, as convolutions and pooling use them. Dims: H height, W width, OH and OW number of windows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from lepton_mpi.ops.array_module import Array, array_module

Pair: TypeAlias = tuple[int, int]  # of height and width


@dataclass(frozen=True)
class Windows:
    """Size and places of windows; each attribute is (height, width).

    Attributes:
        kernel: taps of a window.
        stride: distance of neighbouring windows.
        padding: pixels added on each side of the image.
        dilation: distance of neighbouring taps.

    Raises:
        ValueError: a size is not positive, or the padding is negative.
    """

    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    def __post_init__(self) -> None:
        """Check the sizes."""
        if min(*self.kernel, *self.stride, *self.dilation) < 1 or min(self.padding) < 0:
            raise ValueError(f"expected positive sizes and a padding of at least 0, received {self}")

    def counts(self, height: int, width: int) -> Pair:
        """Return (OH, OW) for an image. Local.

        Raises:
            ValueError: the image is smaller than a window.
        """
        reach = [d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True)]
        room = [n + 2 * p - r for n, p, r in zip((height, width), self.padding, reach, strict=True)]
        if min(room) < 0:
            raise ValueError(
                f"an image of {height} x {width} is smaller than a window of {reach[0]} x {reach[1]} on padding {self.padding}"
            )
        return room[0] // self.stride[0] + 1, room[1] // self.stride[1] + 1

    def pad(self, x: Array, value: float = 0.0) -> Array:
        """Return x [B, H, W, C] with its padding around it, a new array where there is any. Local."""
        top, left = self.padding
        if top == left == 0:
            return x
        padded: Array = array_module(x).pad(x, ((0, 0), (top, top), (left, left), (0, 0)), constant_values=value)
        return padded

    def unpad(self, padded: Array) -> Array:
        """Return the image within its padding, a view. Local."""
        top, left = self.padding
        return padded[:, top : padded.shape[1] - top, left : padded.shape[2] - left]

    def taps(self, padded: Array) -> Iterator[tuple[int, int, Any]]:
        """Yield (row, column, view [B, OH, OW, C] of the pixels under it) of each tap, row by row. Local.

        Args:
            padded: [B, H, W, C] with padding; writing to the views writes to it.
        """
        top, left = self.padding
        rows, columns = self.counts(padded.shape[1] - 2 * top, padded.shape[2] - 2 * left)
        for i in range(self.kernel[0]):
            first_row = i * self.dilation[0]
            for j in range(self.kernel[1]):
                first = j * self.dilation[1]
                yield (
                    i,
                    j,
                    padded[
                        :,
                        first_row : first_row + (rows - 1) * self.stride[0] + 1 : self.stride[0],
                        first : first + (columns - 1) * self.stride[1] + 1 : self.stride[1],
                    ],
                )


def pair(value: int | Pair) -> Pair:
    """Return (value, value) for one number, and a pair as it is. Local."""
    return (value, value) if isinstance(value, int) else value
