"""What `data.augment` says, read in one place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

from lepton_mpi.errors import ConfigError

_FORMS: Final = {
    "flip": "flip",
    "crop": "crop:PIXELS or crop:PIXELS:reflect",
    "cutout": "cutout:PIXELS",
    "mixup": "mixup:ALPHA",
}


@final
@dataclass(frozen=True)
class AugmentationSettings:
    """Which changes training samples undergo; 0 and False are none.

    Attributes:
        flip: mirror images left to right, half of them.
        crop: pixels that are added on each side of an image before a window of its size is cut out of it.
        reflect: whether the added pixels mirror the image; else they are 0.
        cutout: side of a square that is cleared, pixels.
        mixup: alpha of the law Beta(alpha, alpha) of a sample's share in its mix with another.
    """

    flip: bool = False
    crop: int = 0
    reflect: bool = False
    cutout: int = 0
    mixup: float = 0.0

    @property
    def of_images(self) -> tuple[str, ...]:
        """Names of the changes that only images can undergo."""
        return tuple(name for name in ("flip", "crop", "cutout") if getattr(self, name))


def parse_augmentation(entries: Sequence[str]) -> AugmentationSettings:
    """Return what the entries of `data.augment` say. Local.

    Args:
        entries: "flip", "crop:4", "crop:4:reflect", "cutout:8", "mixup:0.2"; each name at most once.

    Raises:
        ConfigError: an unknown or repeated name, or a setting that is missing, superfluous or out of range.
    """
    found: dict[str, bool | int | float] = {}
    for entry in entries:
        name, *values = (part.strip() for part in entry.split(":"))
        if name not in _FORMS:
            raise ConfigError(f"data.augment: expected one of {', '.join(_FORMS.values())}, got {entry!r}")
        if name in found:
            raise ConfigError(f"data.augment: {name} is given twice; leave one out of {', '.join(map(repr, entries))}")
        if name == "flip":
            _require(not values, name, entry)
            found[name] = True
        elif name == "mixup":
            _require(len(values) == 1, name, entry)
            found[name] = _alpha(values[0], entry)
        else:
            reflects = name == "crop" and values[1:] == ["reflect"]
            _require(len(values) == 1 + reflects, name, entry)
            found |= {"reflect": True} if reflects else {}
            found[name] = _pixels(values[0], entry)
    return AugmentationSettings(**found)  # type: ignore[arg-type]  # each name has got a value of its field's type


def _require(fits: bool, name: str, entry: str) -> None:
    if not fits:
        raise ConfigError(f"data.augment: expected {_FORMS[name]}, got {entry!r}")


def _pixels(text: str, entry: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ConfigError(f"data.augment: {entry!r}: expected a whole number of pixels of at least 1, got {text!r}")
    return int(text)


def _alpha(text: str, entry: str) -> float:
    try:
        alpha = float(text)
    except ValueError:
        alpha = math.nan
    if not 0 < alpha < math.inf:
        raise ConfigError(f"data.augment: {entry!r}: expected a finite number above 0, got {text!r}")
    return alpha
