"""Changes of training samples against loops over single images, their laws, and their independence of the batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lepton_mpi.config.augmentation import AugmentationSettings
from lepton_mpi.config.schema import DataConfig
from lepton_mpi.data.augmentation import Augmentation, ImageLayout, choose_max_shift, symmetric_beta
from lepton_mpi.errors import ConfigError, DataError
from lepton_mpi.nn.image_input import image_geometry
from lepton_mpi.runtime.random import philox, random_key

SHAPES = [(5, 6), (3, 5, 6), (5, 6, 3)]
NUM_SAMPLES, NUM_CLASSES = 40, 6
SAMPLES = np.random.default_rng(2).permutation(NUM_SAMPLES)
CHANGES = {
    "shift": (AugmentationSettings(), 2),
    "flip": (AugmentationSettings(flip=True), 0),
    "crop": (AugmentationSettings(crop=3), 0),
    "reflected crop and flip": (AugmentationSettings(flip=True, crop=3, reflect=True), 0),
    "shift and flip": (AugmentationSettings(flip=True), 1),
    "cutout": (AugmentationSettings(cutout=3), 0),
    "mixup": (AugmentationSettings(mixup=0.4), 0),
    "all": (AugmentationSettings(True, 2, False, 2, 1.5), 0),
}


def made(shape: tuple[int, ...], name: str) -> tuple[np.ndarray, np.ndarray, Augmentation]:
    """Return images without zeros, their classes, and what changes them."""
    random = np.random.default_rng(0)
    height, width, _, channels = image_geometry(shape)
    settings, shift = CHANGES[name]
    images, labels = random.random((NUM_SAMPLES, *shape), np.float32) + 1, random.integers(0, NUM_CLASSES, NUM_SAMPLES)
    layout = ImageLayout(height, width, channels)
    return images, labels, Augmentation(settings, 3, NUM_SAMPLES, shift, layout, num_classes=NUM_CLASSES)


def apply(augmentation: Augmentation, images: np.ndarray, samples: np.ndarray = SAMPLES, epoch: int = 1) -> np.ndarray:
    before = images.copy()
    found = augmentation.inputs(lambda indices: images[indices], lambda x: x - 1, epoch, samples)
    np.testing.assert_array_equal(images, before)
    return found


def apply_to_labels(augmentation: Augmentation, labels: np.ndarray, samples: np.ndarray = SAMPLES, epoch: int = 1) -> np.ndarray:
    return augmentation.labels(lambda indices: labels[indices], epoch, samples)


def first(image: np.ndarray) -> np.ndarray:
    """Return an image as [C, H, W]."""
    place = image_geometry(image.shape)[3]
    return image if place == "first" else image[None] if place == "none" else image.transpose(2, 0, 1)


def move_one(image: np.ndarray, down: int, right: int, mirror: bool, mode: str) -> np.ndarray:
    """Return an image [C, H, W] padded by 3, and a window of its size cut out there."""
    padded = np.pad(image, ((0, 0), (3, 3), (3, 3)), mode=mode)  # type: ignore[call-overload]
    window = padded[:, 3 + down :, 3 + right :][:, : image.shape[1], : image.shape[2]]
    return window[:, :, ::-1] if mirror else window


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["shift", "flip", "crop", "reflected crop and flip", "shift and flip"])
def test_every_image_is_a_moved_one(shape: tuple[int, ...], name: str) -> None:
    images, _, augmentation = made(shape, name)
    moved = apply(augmentation, images) + 1  # normalised by - 1
    assert moved.shape == images.shape and moved.dtype == np.float32
    settings, most = augmentation.settings, max(augmentation.settings.crop, augmentation.max_shift)
    mode, seen = "reflect" if settings.reflect else "constant", set()
    moves = [(d, r, m) for d in range(-most, most + 1) for r in range(-most, most + 1) for m in (False, True)[: 1 + settings.flip]]
    for before, after in zip(images[SAMPLES], moved, strict=True):
        found = [move for move in moves if np.allclose(move_one(first(before), *move, mode), first(after), atol=1e-6)]
        assert len(found) == 1 or (settings.reflect and found)  # a reflected window may be symmetric
        seen.add(found[0])
    assert len(seen) >= min(NUM_SAMPLES, len(moves)) * 0.6


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CHANGES)
def test_result_does_not_depend_on_the_batch(shape: tuple[int, ...], name: str) -> None:
    images, labels, augmentation = made(shape, name)
    whole, whole_labels = apply(augmentation, images), apply_to_labels(augmentation, labels)
    for cut in (0, 1, 7, NUM_SAMPLES):
        parts = [slice(0, cut), slice(cut, None)]
        np.testing.assert_array_equal(np.concatenate([apply(augmentation, images, SAMPLES[part]) for part in parts]), whole)
        pieces = [apply_to_labels(augmentation, labels, SAMPLES[part]) for part in parts]
        np.testing.assert_array_equal(np.concatenate(pieces), whole_labels)
    assert not np.array_equal(apply(augmentation, images, epoch=2), whole)
    assert not np.array_equal(apply(replace(augmentation, seed=4), images), whole)


def test_offsets_and_mirrors_are_even() -> None:
    image = np.zeros((9000, 5, 5), np.float32)
    image[:, 2, 2] = 1
    for settings, shift in ((AugmentationSettings(), 1), (AugmentationSettings(crop=1), 0)):
        augmentation = Augmentation(settings, 0, 9000, shift, ImageLayout(5, 5, "none"))
        counts = (apply(augmentation, image, np.arange(9000)) + 1).sum(axis=0)[1:4, 1:4]
        assert counts.sum() == 9000 and np.abs(counts - 1000).max() < 5 * np.sqrt(1000 * 8 / 9)
    image[:, 2, 0] = 2
    flip = Augmentation(AugmentationSettings(flip=True), 0, 9000, 0, ImageLayout(5, 5, "none"))
    mirrored = apply(flip, image, np.arange(9000))[:, 2, 4] == 1
    assert abs(mirrored.sum() - 4500) < 5 * np.sqrt(9000 / 4)


def test_the_shift_of_earlier_versions() -> None:
    """Runs with data.max_shift are those of before there was anything else."""
    images = np.random.default_rng(1).random((30, 8, 8), np.float32)
    words = philox(random_key(3, "shift", 1), np.arange(30, dtype=np.uint64))[:, :2].astype(np.uint64)
    offsets = (words * np.uint64(5) >> np.uint64(32)).astype(np.int64) - 2
    moved = Augmentation(AugmentationSettings(), 3, 30, 2, ImageLayout(8, 8, "none"))
    expected = [
        move_one(image[None], down, right, False, "constant")[0] for image, (down, right) in zip(images, offsets, strict=True)
    ]
    np.testing.assert_array_equal(apply(moved, images, np.arange(30)), np.stack(expected) - 1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", [1, 2, 3, 4])
def test_cutout_clears_a_square_around_any_pixel(shape: tuple[int, ...], side: int) -> None:
    height, width, _, channels = image_geometry(shape)
    images = np.ones((2000, *shape), np.float32) * 5
    augmentation = Augmentation(AugmentationSettings(cutout=side), 0, 2000, 0, ImageLayout(height, width, channels))
    cut = apply(augmentation, images, np.arange(2000))
    assert set(np.unique(cut)) == {0.0, 4.0}  # cleared after the normalisation
    seen = set()
    for image in cut:
        planes = first(image) == 0
        assert (planes == planes[0]).all()
        rows, columns = np.flatnonzero(planes[0].any(axis=1)), np.flatnonzero(planes[0].any(axis=0))
        assert planes[0].sum() == len(rows) * len(columns)
        seen.add((rows[0], rows[-1], columns[0], columns[-1]))
    starts = [(c - side // 2, c - side // 2 + side - 1) for c in range(max(height, width))]
    expected = {
        (max(top, 0), min(bottom, height - 1), max(left, 0), min(right, width - 1))
        for top, bottom in starts[:height]
        for left, right in starts[:width]
    }
    assert seen == expected


@pytest.mark.parametrize("labels_kind", ["classes", "values"])
def test_mixup_adds_shares_of_two_samples_and_of_their_labels(labels_kind: str) -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((50, 7)).astype(np.float32)
    y = random.integers(0, NUM_CLASSES, 50) if labels_kind == "classes" else random.standard_normal((50, 2)).astype(np.float32)
    augmentation = Augmentation(AugmentationSettings(mixup=1.0), 0, 50, num_classes=NUM_CLASSES if labels_kind == "classes" else 0)
    mixed, labels = apply(augmentation, x, np.arange(50)) + 1, apply_to_labels(augmentation, y, np.arange(50))
    assert labels.dtype == np.float32
    ends, partners = (np.eye(NUM_CLASSES)[y] if labels_kind == "classes" else y), set()
    for i in range(50):
        residuals = []
        for j in range(50):  # the share that explains the inputs best
            step = x[i] - x[j]
            share = (mixed[i] - x[j]) @ step / (step @ step) if i != j else 1.0
            residuals.append((np.abs(x[j] + share * step - mixed[i]).max(), j, share))
        error, j, share = min(residuals)
        assert error < 1e-5 and -1e-5 <= share <= 1 + 1e-5
        np.testing.assert_allclose(labels[i], share * ends[i] + (1 - share) * ends[j], atol=1e-4)
        partners.add(j)
    assert len(partners) > 20


def test_labels_to_ignore_weigh_nothing_in_a_mix() -> None:
    augmentation = Augmentation(AugmentationSettings(mixup=1.0), 0, 2, num_classes=3)
    mixes = apply_to_labels(augmentation, np.array([-100, -100]), np.arange(2))
    np.testing.assert_array_equal(mixes, np.zeros((2, 3)))
    with pytest.raises(DataError, match=r"expected a class in \[0, 3\)"):
        apply_to_labels(augmentation, np.array([3, 3]), np.arange(2))


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.5, 1.0, 2.0, 8.0])
def test_shares_have_the_law_beta(alpha: float) -> None:
    shares = symmetric_beta(alpha, philox(7, np.arange(40_000, dtype=np.uint64)))
    assert shares.min() >= 0 and shares.max() <= 1 and shares.dtype == np.float64
    drawn = np.random.default_rng(0).beta(alpha, alpha, 40_000)
    grid = np.linspace(0.02, 0.98, 49)
    gap = [(shares < g).mean() - (drawn < g).mean() for g in grid]
    assert np.abs(gap).max() < 1.95 * np.sqrt(2 / 40_000)  # Kolmogorov and Smirnov, at a level of 0.001
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


def test_extreme_words_have_shares() -> None:
    words = np.array([[0, 0, 0], [2**32 - 1, 0, 2**32 - 1], [5, 2**30, 0], [0, 0, 2**31]], np.uint32)
    assert np.isfinite(symmetric_beta(1e-3, words)).all() and np.isfinite(symmetric_beta(1e3, words)).all()


@pytest.mark.parametrize("name", ["shift", "crop", "reflected crop and flip"])
def test_labels_of_pixels_move_with_them(name: str) -> None:
    labels = np.random.default_rng(0).integers(0, 9, (NUM_SAMPLES, 5, 6))
    images = (labels[:, None] + 2 + 100 * np.arange(3).reshape(1, 3, 1, 1)).astype(np.float32)  # brightness tells the class
    _, _, augmentation = made((3, 5, 6), name)
    x, y = apply(augmentation, images) + 1, apply_to_labels(replace(augmentation, move_labels=True), labels)
    np.testing.assert_array_equal(np.where(x[:, 0] == 0, -100, x[:, 0] - 2), y)
    assert (y == -100).any() == (not augmentation.settings.reflect) and y.dtype == np.int64
    np.testing.assert_array_equal(apply_to_labels(augmentation, labels), labels[SAMPLES])  # labels of another kind stay


def test_choice_of_the_largest_shift() -> None:
    assert choose_max_shift(DataConfig(format="digits"), (8, 8)) == 1
    assert choose_max_shift(DataConfig(format="csv"), (8,)) == 0
    assert choose_max_shift(DataConfig(format="idx", max_shift=3), (28, 28)) == 3
    assert choose_max_shift(DataConfig(format="npy", max_shift=3), (5, 5, 3)) == 3
    assert choose_max_shift(DataConfig(format="csv", max_shift=0), (64,)) == 0
    for shape in ((64,), (3, 8, 2), (2, 8, 3), (2, 9, 9, 9)):
        with pytest.raises(DataError, match=r"data\.max_shift is 2"):
            choose_max_shift(DataConfig(format="npy", max_shift=2), shape)
    with pytest.raises(ConfigError, match=r"set model\.channels"):
        choose_max_shift(DataConfig(format="npy", max_shift=2), (7, 7, 7))
    assert choose_max_shift(DataConfig(format="npy", max_shift=2), (7, 7, 7), "first") == 2
