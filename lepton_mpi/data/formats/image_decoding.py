"""From the bytes of a picture to an array: the size and the colours that the configuration asks for.

Pictures are decoded by Pillow, an extra of the package.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO, Any, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.errors import ConfigError, DataError

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Pillow's modes of 8 bits a channel. Others (16 bits, floats) would be clipped without a word when they are converted.
_EIGHT_BIT_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV")


@final
@dataclass(frozen=True)
class ImageDecoder:
    """Decodes pictures into arrays of one shape.

    Attributes:
        size: (height, width) that pictures are scaled to: the middle of a picture that has these proportions is cut
            out and scaled, bilinearly and with smoothing, as if the whole had been scaled and then cut. Empty: pictures
            stay as large as they are.
        mode: "rgb": arrays are [3, H, W]; "grey": [H, W], of the luma of ITU-R BT.601.

    Raises:
        ConfigError: Pillow is not installed.
    """

    size: tuple[int, ...] = ()
    mode: str = "rgb"

    def __post_init__(self) -> None:
        _import_pillow()

    def decode(self, file: IO[bytes], place: str) -> NDArray[np.uint8]:
        """Return a picture, uint8[3, H, W] or [H, W]. Of animations the first frame is taken. Local.

        Args:
            file: what holds it, at its start.
            place: the file and offset, for messages.

        Raises:
            DataError: it is damaged or too large, no picture, or has more than 8 bits a channel.
        """
        image_module, operations = _import_pillow()
        try:
            with image_module.open(file) as image:
                mode = image.mode
                if mode in _EIGHT_BIT_MODES:
                    return self._to_array(image, image_module, operations)
        except Exception as error:  # Pillow's readers raise many types on damaged bytes
            raise DataError(f"{place}: expected a picture: {error}: the file is damaged, or no picture; replace it") from error
        raise DataError(f"{place}: expected a picture of 8 bits a channel, found Pillow's mode {mode}: convert the picture")

    def _to_array(self, image: Any, image_module: Any, operations: Any) -> NDArray[np.uint8]:
        image = image.convert("RGB" if self.mode == "rgb" else "L")
        if self.size and (image.height, image.width) != self.size:
            image = operations.fit(image, (self.size[1], self.size[0]), image_module.Resampling.BILINEAR)
        array = np.asarray(image, np.uint8)
        return np.ascontiguousarray(array.transpose(2, 0, 1)) if self.mode == "rgb" else array


def _import_pillow() -> tuple[Any, Any]:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ConfigError("data.format: pictures need Pillow, which is not installed: pip install lepton_mpi[images]") from error
    return Image, ImageOps
