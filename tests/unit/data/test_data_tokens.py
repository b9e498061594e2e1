"""Text: windows of tokens, files of token numbers, files, folders, and the standard library."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_mpi.config.schema import DataConfig
from lepton_mpi.data.formats.tokens import TokenWindows
from lepton_mpi.data.needs import DataNeeds
from lepton_mpi.data.splits import open_datasets, open_inputs, open_test_set
from lepton_mpi.errors import ConfigError, DataError
from lepton_mpi.runtime.mpi import start_mpi


@settings(deadline=None)
@given(num_tokens=st.integers(1, 200), context=st.integers(1, 30), fraction=st.floats(0, 0.9))
def test_windows_follow_each_other(num_tokens: int, context: int, fraction: float) -> None:
    tokens = np.random.default_rng(num_tokens).integers(0, 1000, num_tokens).astype(np.uint16)
    windows = TokenWindows("t", tokens, context, 1000)
    count = windows.num_samples
    assert count * context + 1 <= num_tokens < (count + 1) * context + 1 + (count == 0)
    assert (windows.input_shape, windows.label_shape, windows.label_kind) == ((context,), (context,), "class")
    order = np.random.default_rng(1).permutation(count)
    ids, labels = windows.read_ids(order), windows.read_labels(order)
    assert ids.dtype == labels.dtype == np.int64 and ids.shape == labels.shape == (count, context)
    for i, x, y in zip(order, ids, labels, strict=True):
        np.testing.assert_array_equal(x, tokens[i * context :][:context])
        np.testing.assert_array_equal(y, tokens[i * context + 1 :][:context])
    train, test = windows.split(fraction)
    assert test.num_samples == min(int(count * fraction), max(count - 1, 0)) and train.num_samples + test.num_samples == count
    parts = [part.read(np.arange(part.num_samples)) for part in (train, test)]
    whole = windows.read(np.arange(count))
    for i in range(2):
        np.testing.assert_array_equal(np.concatenate([part[i] for part in parts]), whole[i])  # the test text is the end


@pytest.mark.parametrize("token_type, dtype", [("uint8", "u1"), ("uint16", "<u2"), ("uint32", "<u4")])
def test_token_files(tmp_path: Path, token_type: str, dtype: str) -> None:
    tokens = (np.arange(101) * 37 % 251).astype(dtype)
    path = tmp_path / "t.bin"
    tokens.tofile(path)
    config = DataConfig(format="tokens", path=str(path), token_type=token_type, test_fraction=0.25)
    splits = open_datasets(config, start_mpi(), DataNeeds(context=10))
    assert (splits.train.num_samples, splits.test.num_samples, splits.train.num_classes) == (8, 2, tokens.max() + 1)
    np.testing.assert_array_equal(splits.test.read_ids(np.arange(2)).reshape(-1), tokens[80:100])
    np.testing.assert_array_equal(splits.test.read_labels(np.arange(2)).reshape(-1), tokens[81:101])
    alone = open_test_set(config, DataNeeds(context=10))
    assert (alone.num_samples, alone.num_classes) == (2, tokens.max() + 1)
    assert open_inputs(str(path), "tokens", config, DataNeeds(context=50)).num_samples == 2


def test_the_vocabulary_is_that_of_both_files(tmp_path: Path) -> None:
    train, test = tmp_path / "a.bin", tmp_path / "b.bin"
    np.arange(20, dtype="<u2").tofile(train)
    np.arange(40, dtype="<u2").tofile(test)
    config = DataConfig(format="tokens", path=str(train), test_path=str(test))
    splits = open_datasets(config, start_mpi(), DataNeeds(context=5))
    assert (splits.train.num_classes, splits.test.num_classes, splits.train.num_samples, splits.test.num_samples) == (40, 40, 3, 7)
    assert open_test_set(config, DataNeeds(context=5)).num_classes == 40
    given_size = DataConfig(format="tokens", path=str(train), num_classes=100)
    assert open_datasets(given_size, start_mpi(), DataNeeds(context=5)).train.num_classes == 100


TOKENS = np.arange(30, dtype="<u2").tobytes()
DAMAGED = {
    "odd": (TOKENS[:-1], {}, "expected tokens of 2 bytes, found 59 bytes, which is no multiple"),
    "empty": (b"", {}, "found an empty file"),
    "short": (TOKENS[:20], {}, "expected at least 11 tokens, .* model.context = 10 .* found 10"),
    "vocabulary": (TOKENS, {"num_classes": 20}, r"token 20 \(byte 40\): expected a token of 0 .. 19, found 20"),
}


@pytest.mark.parametrize("content, more, message", DAMAGED.values(), ids=DAMAGED)
def test_damaged_token_files(tmp_path: Path, content: bytes, more: dict[str, int], message: str) -> None:
    path = tmp_path / "t.bin"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        open_datasets(DataConfig(format="tokens", path=str(path), **more), start_mpi(), DataNeeds(context=10))
    assert str(path) in str(caught.value)
    with pytest.raises(DataError, match=message):
        open_test_set(DataConfig(format="tokens", path=str(path), **more), DataNeeds(context=10))
    with pytest.raises(DataError, match=message):
        open_inputs(str(path), "tokens", DataConfig(**more), DataNeeds(context=10))


@pytest.mark.parametrize("name", ["tokens", "text", "pystdlib"])
def test_text_needs_a_context_and_has_no_values(tmp_path: Path, name: str) -> None:
    path = tmp_path / "t"
    path.write_bytes(TOKENS)
    config = DataConfig(format=name, path=str(path))
    with pytest.raises(ConfigError, match=r"model\.context: .* got 0: set model\.context"):
        open_datasets(config, start_mpi())
    with pytest.raises(DataError, match="text has tokens, not values"):
        open_datasets(config, start_mpi(), DataNeeds("value", 10))


@pytest.mark.parametrize("name", ["tokens", "text"])
def test_missing_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="No such file"):
        open_datasets(DataConfig(format=name, path=str(tmp_path / "none")), start_mpi(), DataNeeds(context=4))


def text_of(config: DataConfig, context: int) -> bytes:
    windows = open_inputs(config.path, config.format, config, DataNeeds(context=context))
    assert windows.num_classes == 256
    return windows.read_ids(np.arange(windows.num_samples)).astype(np.uint8).tobytes()


def test_text_files(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes("Größe: 3\n".encode() * 10 + b"\xff")
    assert text_of(DataConfig(format="text", path=str(path)), 3) == path.read_bytes()[:-3]
    splits = open_datasets(DataConfig(format="text", path=str(path), test_path=str(path)), start_mpi(), DataNeeds(context=3))
    assert splits.train.num_samples == splits.test.num_samples == 36
    assert splits.train.name == "t.txt"


def test_text_folders(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    (folder / "b" / "a").mkdir(parents=True)
    (folder / "a").mkdir()
    for name in ("z", "B", "b/y", "b/a/x", "a/w"):
        (folder / name).write_text(name.replace("/", "."))
    (tmp_path / "secret").write_text("outside")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "up").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")  # opening it would wait for ever
    assert text_of(DataConfig(format="text", path=str(folder) + "/"), 1) == b"B\nz\na.w\nb.y\nb.a."


def test_folders_without_text(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("")
    with pytest.raises(DataError, match="expected a folder with files of text, found none"):
        open_datasets(DataConfig(format="text", path=str(tmp_path)), start_mpi(), DataNeeds(context=1))


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("abc")

    def refuse(path: str) -> os.stat_result:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "lstat", refuse)
    with pytest.raises(DataError, match=r"/a: cannot be read: Permission denied"):
        open_inputs(str(tmp_path), "text", DataConfig(), DataNeeds(context=1))
    monkeypatch.undo()
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"cannot be read: Permission denied"):
        open_inputs(str(tmp_path), "text", DataConfig(), DataNeeds(context=1))


def test_the_standard_library() -> None:
    splits = open_datasets(DataConfig(format="pystdlib", test_fraction=0.1, test_samples=0), start_mpi(), DataNeeds(context=256))
    total = splits.train.num_samples + splits.test.num_samples
    assert splits.train.num_classes == 256 and splits.test.num_samples == total // 10 and total * 256 > 5_000_000
    text = splits.train.read_ids(np.arange(splits.train.num_samples)).astype(np.uint8).tobytes()
    stdlib = Path(sysconfig.get_path("stdlib"))
    first = min(path for path in stdlib.glob("*.py"))
    assert text.startswith(first.read_bytes()[:1000])
    assert (stdlib / "json" / "decoder.py").read_bytes() in text
    tests = stdlib / "test" / "support" / "__init__.py"  # some systems install them apart
    assert not tests.exists() or tests.read_bytes()[:500] not in text


@pytest.mark.parametrize(("test_samples", "expected"), [(-1, 256), (0, 400), (7, 7), (1000, 400)])
def test_few_windows_are_enough_to_test_on(tmp_path: Path, test_samples: int, expected: int) -> None:
    (tmp_path / "long.txt").write_bytes(bytes(range(250)) * 32 + b"\0")  # 2000 windows of 4
    config = DataConfig(format="text", path=str(tmp_path / "long.txt"), test_fraction=0.2, test_samples=test_samples)
    splits = open_datasets(config, start_mpi(), DataNeeds(context=4))
    assert (splits.train.num_samples, splits.test.num_samples) == (1600, expected)
    assert splits.test.read_ids(np.arange(1)).tolist() == [[6400 % 250 + i for i in range(4)]]
    alone = open_test_set(config, DataNeeds(context=4))
    assert alone.num_samples == expected
