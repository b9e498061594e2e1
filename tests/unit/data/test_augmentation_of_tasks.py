"""Which changes of samples fit which data and tasks."""

from __future__ import annotations

from typing import Any

import pytest

from lepton_mpi.config.augmentation import AugmentationSettings
from lepton_mpi.config.schema import DataConfig, ModelConfig
from lepton_mpi.data.augmentation import Augmentation, ImageLayout, make_augmentation
from lepton_mpi.errors import ConfigError, DataError
from lepton_mpi.models.family import DataShape
from lepton_mpi.train.network import declare_model


def make(data: DataShape, model: dict[str, Any], *augment: str, **config: Any) -> Augmentation | None:
    options = ModelConfig(**({"family": "mlp"} | model))
    return make_augmentation(
        DataConfig(format="npz", augment=augment, **config), declare_model(options, data), options.channels, 9, 3
    )


IMAGES, MASKS = DataShape((8, 12, 3), 10), DataShape((8, 12, 3), 4, (8, 12))
ROWS, VALUES, PAIRS = DataShape((7,), 3), DataShape((7,), 0, (2,)), DataShape((2,), 0, (), (5, 6))
UNET = {"family": "unet", "depth": 2}


def test_what_fits() -> None:
    layout = ImageLayout(8, 12, "last")
    assert make(IMAGES, {}, "flip", "crop:2") == Augmentation(AugmentationSettings(True, 2), 3, 9, 0, layout, num_classes=10)
    assert make(IMAGES, {}, max_shift=7) == Augmentation(AugmentationSettings(), 3, 9, 7, layout, num_classes=10)
    assert make(MASKS, UNET, "flip") == Augmentation(AugmentationSettings(True), 3, 9, 0, layout, True, 4)
    assert make(ROWS, {}, "mixup:0.2") == Augmentation(AugmentationSettings(mixup=0.2), 3, 9, num_classes=3)
    assert make(VALUES, {"task": "regression"}, "mixup:0.2") == Augmentation(AugmentationSettings(mixup=0.2), 3, 9)
    assert make(IMAGES, {}) is None and make(ROWS, {}) is None and make(PAIRS, {"family": "recommender", "task": "ranking"}) is None
    digits = declare_model(ModelConfig(channels="first"), DataShape((8, 8), 10))
    found = make_augmentation(DataConfig(augment=("crop:1",)), digits, "first", 9, 3)
    assert found is not None and (found.max_shift, found.images) == (0, ImageLayout(8, 8, "none"))  # the crop is the shift
    found = make_augmentation(DataConfig(), digits, "first", 9, 3)
    assert found is not None and found.max_shift == 1


@pytest.mark.parametrize(
    ("data", "model", "augment", "config", "message"),
    [
        (PAIRS, {"family": "recommender", "task": "ranking"}, ["flip"], {}, r"data\.augment: flip: the model family recommender"),
        (PAIRS, {"family": "recommender", "task": "ranking"}, ["mixup:1"], {}, r"data\.augment: mixup: the model family"),
        (PAIRS, {"family": "recommender", "task": "ranking"}, [], {"max_shift": 1}, r"data\.max_shift: the model family"),
        (DataShape((16,), 50, (16,)), {"family": "gpt", "context": 16}, ["crop:2"], {}, r"the model family gpt takes numbers"),
        (IMAGES, {}, ["crop:2"], {"max_shift": 1}, r"data\.max_shift = 1: data\.augment crops"),
        (MASKS, UNET, ["mixup:1"], {}, r"mixup is for the tasks .*, the task is segmentation"),
        (ROWS, {}, ["flip", "cutout:2"], {}, r"flip, cutout is for images .*, got samples of shape \(7,\)"),
        (IMAGES, {}, ["crop:8"], {}, r"crop:8: expected less than the sides of the images, 8x12"),
        (IMAGES, {}, ["cutout:9"], {}, r"cutout:9: expected at most the sides of the images, 8x12"),
        (DataShape((5, 6, 7), 2), {}, ["flip"], {}, r"set model\.channels"),
    ],
)
def test_what_makes_no_sense(data: DataShape, model: Any, augment: list[str], config: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(data, model, *augment, **config)


def test_shift_of_samples_that_are_no_images() -> None:
    with pytest.raises(DataError, match=r"data\.max_shift is 1"):
        make(ROWS, {}, max_shift=1)
