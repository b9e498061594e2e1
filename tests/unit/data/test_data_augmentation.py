"""Random shifts: against a loop, whatever the batch, in every direction equally often."""

from __future__ import annotations

import numpy as np
import pytest

from lepton_mpi.config.schema import DataConfig
from lepton_mpi.data.augmentation import choose_max_shift, shift_images
from lepton_mpi.errors import DataError


def shift_one(image: np.ndarray, down: int, right: int) -> np.ndarray:
    moved = np.zeros_like(image)
    height, width = image.shape[-2:]
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                moved[..., row, column] = image[..., row - down, column - right]
    return moved


@pytest.mark.parametrize("shape", [(5, 4), (3, 5, 4), (2, 3, 4, 5)])
@pytest.mark.parametrize("max_shift", [0, 1, 2])
def test_every_image_is_a_shifted_one(shape: tuple[int, ...], max_shift: int) -> None:
    images = np.random.default_rng(0).random((40, *shape), np.float32) + 1
    moved = shift_images(images, max_shift, 3, 1, np.arange(40))
    assert moved.shape == images.shape and moved.dtype == np.float32
    shifts = range(-max_shift, max_shift + 1)
    seen = set()
    for before, after in zip(images, moved, strict=True):
        found = [(d, r) for d in shifts for r in shifts if np.array_equal(shift_one(before, d, r), after)]
        assert len(found) == 1
        seen.update(found)
    assert len(seen) >= min(40, len(shifts) ** 2) * 0.6


def test_result_does_not_depend_on_the_batch() -> None:
    images = np.random.default_rng(1).random((30, 8, 8), np.float32)
    samples = np.random.default_rng(2).permutation(10**9 + np.arange(30))
    whole = shift_images(images, 2, 7, 4, samples)
    for cut in (1, 7, 29):
        parts = [shift_images(images[:cut], 2, 7, 4, samples[:cut]), shift_images(images[cut:], 2, 7, 4, samples[cut:])]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert shift_images(images[:0], 2, 7, 4, samples[:0]).shape == (0, 8, 8)
    for seed, epoch in ((7, 5), (8, 4)):
        assert not np.array_equal(shift_images(images, 2, seed, epoch, samples), whole)


def test_shifts_are_even() -> None:
    image = np.zeros((9000, 5, 5), np.float32)
    image[:, 2, 2] = 1
    counts = shift_images(image, 1, 0, 0, np.arange(9000)).sum(axis=0)[1:4, 1:4]
    assert counts.sum() == 9000 and np.abs(counts - 1000).max() < 5 * np.sqrt(1000 * 8 / 9)


def test_choice_of_the_largest_shift() -> None:
    assert choose_max_shift(DataConfig(format="digits"), (8, 8)) == 1
    assert choose_max_shift(DataConfig(format="csv"), (8,)) == 0
    assert choose_max_shift(DataConfig(format="idx", max_shift=3), (28, 28)) == 3
    assert choose_max_shift(DataConfig(format="csv", max_shift=0), (64,)) == 0
    for shape in ((64,), (3, 8, 2)):
        with pytest.raises(DataError, match=r"data\.max_shift is 2"):
            choose_max_shift(DataConfig(format="npy", max_shift=2), shape)
