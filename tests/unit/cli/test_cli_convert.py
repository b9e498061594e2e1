"""convert: its arguments, what it writes and says, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lepton_mpi.cli.arguments import ConvertArguments, read_arguments
from lepton_mpi.cli.convert import run_convert
from lepton_mpi.data.storage.packed import open_packed
from lepton_mpi.errors import ConfigError, DataError
from lepton_mpi.runtime.mpi import start_mpi


def run(*argv: object) -> None:
    arguments = read_arguments(["convert", *map(str, argv)])
    assert isinstance(arguments, ConvertArguments)
    run_convert(start_mpi().Dup(), arguments)


def test_convert_and_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("out", "out.h5"):
        output = tmp_path / name
        run("--output", output)
        line = f"{output}: digits, 1797 samples of shape (8, 8), 10 classes, 0.11 MiB\n"
        assert capsys.readouterr().out == f"wrote {line}"
        run("--verify", output)
        assert capsys.readouterr().out == f"verified {line}"
    with (tmp_path / "out" / "labels.npy").open("r+b") as file:
        file.seek(200)
        file.write(b"\x55")
    with pytest.raises(DataError, match=r"labels.npy, offset 0: expected bytes 0 .. 1924 with SHA-256"):
        run("--verify", tmp_path / "out")


@pytest.mark.parametrize(("split", "count"), [("all", 1797), ("train", 1348), ("test", 449)])
def test_splits(tmp_path: Path, split: str, count: int, capsys: pytest.CaptureFixture[str]) -> None:
    run("--split", split, "--data.test_fraction", "0.25", "--output", tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["num_samples"], manifest["split"]) == (count, split)


def test_the_validation_set_does_not_take_the_place_of_the_test_set(tmp_path: Path) -> None:
    found = {}
    for split in ("all", "train", "validation", "test"):
        run("--split", split, "--data.validation_fraction", "0.2", "--data.test_fraction", "0.2", "--output", tmp_path / split)
        dataset = open_packed(str(tmp_path / split))
        found[split] = dataset.read_raw(np.arange(dataset.num_samples)).reshape(dataset.num_samples, -1)
    parts = np.concatenate([found[split] for split in ("train", "validation", "test")])
    assert [len(found[split]) for split in found] == [1797, 1151, 287, 359]
    np.testing.assert_array_equal(np.sort(parts, axis=0), np.sort(found["all"], axis=0))


def test_the_model_says_which_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "c.toml"
    config.write_text('[model]\nfamily = "linear"\ntask = "regression"\n[data]\nformat = "csv"\nlabel_column = "price"\n')
    (tmp_path / "d.csv").write_text("a,price\n" + "".join(f"{n},{n}.5\n" for n in range(10)))
    run(config, "--data.path", tmp_path / "d.csv", "--output", tmp_path / "out")
    assert capsys.readouterr().out == f"wrote {tmp_path}/out: d.csv, 10 samples of shape (1,), values as labels, 0.00 MiB\n"
    values = open_packed(str(tmp_path / "out"), label_kind="value").read_labels(np.arange(3))
    np.testing.assert_array_equal(values, np.float32([0.5, 1.5, 2.5]))


def test_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.txt").write_text("to be or not to be " * 20)
    text = ("--model.family", "gpt", "--model.context", 9, "--data.format", "text", "--data.path", tmp_path / "t.txt")
    run(*text, "--output", tmp_path / "out")
    run(*text, "--output", tmp_path / "out.h5")
    packed, hdf5 = capsys.readouterr().out.splitlines()
    assert packed == f"wrote {tmp_path}/out: t.txt, 380 tokens of 256, 0.00 MiB"
    assert hdf5 == f"wrote {tmp_path}/out.h5: t.txt, 42 samples of shape (9,), 256 classes, 0.00 MiB"


REFUSED = {
    "no output": ((), r"convert: expected --output OUT, or --verify PATH"),
    "both": (("--verify", "a", "--output", "b"), "convert --verify: expected nothing but"),
    "verify with keys": (("--verify", "a", "--data.format", "csv"), "convert --verify: expected nothing but"),
    "split": (("--split", "some", "--output", "b"), "invalid choice"),
    "no validation": (("--split", "validation", "--output", "b"), "data.validation_fraction is 0"),
    "no data": (("--data.format", "csv", "--output", "b"), "data.path: data.format csv reads a file"),
    "unknown key": (("--data.colour", "red", "--output", "b"), "unknown key"),
    "no file": (("none.toml", "--output", "b"), "none.toml"),
    "impossible": (("--data.num_classes", "1", "--output", "b"), "data.num_classes: expected at least 2"),
}


@pytest.mark.parametrize(("argv", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(argv: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_arguments(["convert", *argv])


def test_a_taken_name_is_said_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--output: there is something at"):
        run("--data.format", "csv", "--data.path", "none.csv", "--output", tmp_path)


def test_help() -> None:
    text = read_arguments(["convert", "--help"])
    assert isinstance(text, str) and "--split" in text and "--verify" in text
