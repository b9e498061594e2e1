"""Folders of pictures: made with Pillow, scaled, split, damaged."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from damaged_bytes import damaged
from hypothesis import HealthCheck, given, settings

from lepton_mpi.config.schema import DataConfig
from lepton_mpi.data.formats.image_decoding import ImageDecoder
from lepton_mpi.data.formats.images import ImageFolder
from lepton_mpi.data.needs import DataNeeds
from lepton_mpi.data.splits import open_datasets, open_inputs, open_test_set
from lepton_mpi.errors import ConfigError, DataError
from lepton_mpi.runtime.mpi import start_mpi

Image = pytest.importorskip("PIL.Image")
RNG = np.random.default_rng(0)
CLASSES = ("b cat", "a-dog", "Ölvogel")  # sorted: a-dog, b cat, Ölvogel
PIXELS = {name: RNG.integers(0, 256, (10, 6, 8, 3)).astype(np.uint8) for name in CLASSES}


def write(folder: Path, classes: tuple[str, ...] = CLASSES) -> Path:
    for name in classes:
        (folder / name / "deeper").mkdir(parents=True)
        for i, pixels in enumerate(PIXELS[name]):
            place = folder / name / "deeper" if i == 9 else folder / name
            Image.fromarray(pixels).save(place / f"{i}.{'png' if i % 2 else 'BMP'}")
        (folder / name / "Thumbs.db").write_bytes(b"no picture")
        (folder / name / ".hidden.png").write_bytes(b"no picture")
    return folder


def expected(order: list[str]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([PIXELS[name] for name in order]).transpose(0, 3, 1, 2), np.repeat(np.arange(3), 10)


def test_classes_are_numbered_by_name(tmp_path: Path) -> None:
    dataset = ImageFolder(str(write(tmp_path)), ImageDecoder())
    assert dataset.class_names == ["a-dog", "b cat", "Ölvogel"]
    assert (dataset.num_samples, dataset.input_shape, dataset.num_classes) == (30, (3, 6, 8), 3)
    x, y = expected(dataset.class_names)
    order = np.random.default_rng(1).permutation(30)
    np.testing.assert_array_equal(dataset.read_raw(order), x[order])
    np.testing.assert_array_equal(dataset.read_labels(order), y[order])
    assert dataset.read_raw(order[:0]).shape == (0, 3, 6, 8)


def test_grey_and_scaled(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 20:40] = (255, 0, 0)  # the middle square is red
    Image.fromarray(pixels).save(tmp_path / "c" / "wide.png")
    Image.fromarray(pixels.transpose(1, 0, 2)).save(tmp_path / "c" / "z high.png")
    dataset = ImageFolder(str(tmp_path), ImageDecoder((10, 10)))
    both = dataset.read_raw(np.arange(2))
    assert both.shape == (2, 3, 10, 10) and (both[:, 1:] == 0).all()
    # The smoothing at the cut takes in what is beyond, as if the whole had been scaled and then cut.
    assert (both[:, 0, 1:-1, 1:-1] == 255).all() and (both[:, 0] > 200).all()
    grey = ImageFolder(str(tmp_path), ImageDecoder((10, 10), "grey")).read_raw(np.arange(2))
    assert grey.shape == (2, 10, 10) and (grey[:, 1:-1, 1:-1] == 76).all()  # 0.299 * 255
    half = ImageFolder(str(tmp_path), ImageDecoder((20, 60))).read_raw(np.zeros(1, np.int64))
    np.testing.assert_array_equal(half[0].transpose(1, 2, 0), pixels)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_mode_of_eight_bits(tmp_path: Path, mode: str) -> None:
    (tmp_path / "c").mkdir()
    image = Image.fromarray(PIXELS["a-dog"][0]).convert(mode)
    image.save(tmp_path / "c" / ("x.tif" if mode == "CMYK" else "x.png"))
    found = ImageFolder(str(tmp_path), ImageDecoder()).read_raw(np.zeros(1, np.int64))
    np.testing.assert_array_equal(found[0].transpose(1, 2, 0), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("test_name", ["test", "val"])
def test_a_folder_with_both_sets(tmp_path: Path, test_name: str) -> None:
    write(tmp_path / "train")
    write(tmp_path / test_name, CLASSES[1:])  # a class is missing, and the others keep their numbers
    config = DataConfig(format="images", path=str(tmp_path))
    splits = open_datasets(config, start_mpi())
    assert (splits.train.num_samples, splits.test.num_samples, splits.test.num_classes) == (30, 20, 3)
    assert splits.test.read_labels(np.arange(20)).tolist() == [0] * 10 + [2] * 10
    assert open_test_set(config).read_labels(np.arange(20)).tolist() == [0] * 10 + [2] * 10
    held = open_datasets(DataConfig(format="images", path=str(tmp_path / "train")), start_mpi())
    assert (held.train.num_samples, held.test.num_samples) == (24, 6)
    assert np.bincount(held.test.read_labels(np.arange(6))).tolist() == [2, 2, 2]


def test_values_and_pictures_without_a_class(tmp_path: Path) -> None:
    write(tmp_path, CLASSES[:2])
    config = DataConfig(format="images", path=str(tmp_path))
    values = open_datasets(config, start_mpi(), DataNeeds("value")).train
    assert values.read_labels(np.arange(1)).dtype == np.float32
    flat = open_inputs(str(tmp_path / "a-dog"), "images", config)
    assert (flat.num_samples, flat.num_classes) == (10, 0)
    assert open_inputs(str(tmp_path), "", config).num_classes == 2
    one = open_inputs(str(tmp_path / "a-dog" / "1.png"), "", config)
    np.testing.assert_array_equal(one.read_raw(np.zeros(1, np.int64))[0].transpose(1, 2, 0), PIXELS["a-dog"][1])


def test_evaluating_without_the_training_set(tmp_path: Path) -> None:
    write(tmp_path, CLASSES)
    config = DataConfig(format="images", path=str(tmp_path / "gone"), test_path=str(tmp_path), num_classes=3)
    assert open_test_set(config).num_classes == 3
    config = DataConfig(format="images", path=str(tmp_path / "gone"), test_path=str(tmp_path), num_classes=4)
    with pytest.raises(DataError, match=r"expected subfolders for all 4 classes, .* found 3"):
        open_test_set(config)


def test_damage_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    good = (tmp_path / "a-dog" / "1.png").read_bytes()
    bad = tmp_path / "b cat" / "1.png"
    for content, message in (
        (good[:60], "expected a picture: .*the file is damaged"),
        (b"no picture", "expected a picture: cannot identify"),
        (b"", "found an empty file"),
    ):
        bad.write_bytes(content)
        with pytest.raises(DataError, match=message) as caught:
            ImageFolder(str(tmp_path), ImageDecoder()).read_raw(np.arange(30))
        assert str(bad) in str(caught.value)
    Image.fromarray(PIXELS["a-dog"][0][:5]).save(bad)
    with pytest.raises(DataError, match=r"6 x 8 pixels as .* found 5 x 8: set data\.image_size"):
        ImageFolder(str(tmp_path), ImageDecoder()).read_raw(np.arange(30))
    Image.fromarray(np.zeros((6, 8), np.uint16)).save(bad)
    with pytest.raises(DataError, match="8 bits a channel, found Pillow's mode I;16"):
        ImageFolder(str(tmp_path), ImageDecoder()).read_raw(np.arange(30))


def test_a_huge_picture_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(DataError, match="exceeds limit"):
        ImageFolder(str(tmp_path), ImageDecoder())


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        open_datasets(DataConfig(format="images", path=str(tmp_path / "none")), start_mpi())
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="one subfolder of pictures a class, found none"):
        ImageFolder(str(tmp_path / "train"), ImageDecoder())
    (tmp_path / "train" / "c").mkdir()
    os.symlink("/etc/hostname", tmp_path / "train" / "c" / "link.png")
    with pytest.raises(DataError, match=r"expected pictures \(\.bmp"):
        ImageFolder(str(tmp_path / "train"), ImageDecoder())
    write(tmp_path / "x" / "train", CLASSES[:2])
    write(tmp_path / "x" / "test", CLASSES)
    with pytest.raises(DataError, match="classes among those of the training set, found 'Ölvogel'"):
        open_datasets(DataConfig(format="images", path=str(tmp_path / "x")), start_mpi())
    with pytest.raises(DataError, match="expected 2 classes, found subfolders for 3"):
        ImageFolder(str(tmp_path / "x" / "test"), ImageDecoder(), num_classes=2)


def test_pillow_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ConfigError, match=r"pip install lepton_mpi\[images\]"):
        ImageDecoder()


def encode(image_format: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS["a-dog"][0]).save(file, image_format)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about damage that it can do without
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=5000)
@given(content=damaged(*(encode(name) for name in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "PPM", "WEBP"))))
def test_any_bytes_are_a_picture_or_a_data_error(content: bytes) -> None:
    try:
        picture = ImageDecoder((4, 5)).decode(io.BytesIO(content), "file")
    except DataError as error:
        assert str(error).startswith("file: ")
        return
    assert picture.shape == (3, 4, 5) and picture.dtype == np.uint8
