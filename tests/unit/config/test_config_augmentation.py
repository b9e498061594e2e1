"""What `data.augment` may say."""

from __future__ import annotations

import pytest

from lepton_mpi.config.augmentation import AugmentationSettings, parse_augmentation
from lepton_mpi.config.checks import check_config
from lepton_mpi.config.schema import Config, DataConfig
from lepton_mpi.errors import ConfigError


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ((), AugmentationSettings()),
        (("flip", "crop:4", "cutout:8", "mixup:0.2"), AugmentationSettings(True, 4, False, 8, 0.2)),
        ((" crop : 2 : reflect ", "mixup:1"), AugmentationSettings(crop=2, reflect=True, mixup=1.0)),
    ],
)
def test_settings(entries: tuple[str, ...], expected: AugmentationSettings) -> None:
    assert parse_augmentation(entries) == expected


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (("turn",), r"expected one of flip, crop:PIXELS or .*, got 'turn'"),
        (("",), r"expected one of flip"),
        (("flip:2",), r"expected flip, got 'flip:2'"),
        (("crop",), r"expected crop:PIXELS or crop:PIXELS:reflect, got 'crop'"),
        (("crop:2:edge",), r"expected crop:PIXELS or crop:PIXELS:reflect, got 'crop:2:edge'"),
        (("crop:0",), r"'crop:0': expected a whole number of pixels of at least 1, got '0'"),
        (("cutout:1.5",), r".*: expected a whole number of pixels of at least 1, got '1.5'"),
        (("cutout:2:reflect",), r"expected cutout:PIXELS, got"),
        (("mixup",), r"expected mixup:ALPHA, got 'mixup'"),
        (("mixup:much",), r".*: expected a finite number above 0, got 'much'"),
        (("mixup:0",), r".*: expected a finite number above 0, got '0'"),
        (("mixup:inf",), r".*: expected a finite number above 0, got 'inf'"),
        (("flip", "flip"), r"flip is given twice; leave one out of 'flip', 'flip'"),
    ],
)
def test_malformed_settings(entries: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^data\.augment: {message}"):
        parse_augmentation(entries)
    with pytest.raises(ConfigError, match=r"^data\.augment: "):
        check_config(Config(data=DataConfig(augment=entries)))
