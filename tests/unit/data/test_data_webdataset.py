"""Tar archives of samples: written with tarfile, read in place, and every way in which they can be wrong."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damaged_bytes import damaged
from hypothesis import HealthCheck, given, settings

from lepton_mpi.config.schema import DataConfig
from lepton_mpi.data.formats.webdataset import WebDataset
from lepton_mpi.data.needs import DataNeeds
from lepton_mpi.data.splits import open_datasets, open_inputs
from lepton_mpi.errors import DataError
from lepton_mpi.runtime.mpi import start_mpi

X = np.random.default_rng(0).standard_normal((30, 4, 3)).astype(np.float32)


def npy(array: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version, allow_pickle=False)
    return file.getvalue()


def archive(members: list[tuple[str, bytes]], tar_format: int = tarfile.GNU_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tar_format, encoding="utf-8", errors="surrogateescape") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def samples(start: int, stop: int, suffix: str = "cls", folder: str = "") -> list[tuple[str, bytes]]:
    members: list[tuple[str, bytes]] = []
    for i in range(start, stop):
        label = str(i % 3).encode() if suffix == "cls" else json.dumps({"label": i % 3, "more": "ä"}).encode()
        members += [(f"{folder}{i:04}.npy", npy(X[i])), (f"{folder}{i:04}.{suffix}", label), (f"{folder}{i:04}.txt", b"text")]
    return members


def write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("suffix", ["cls", "json"])
def test_round_trip(tmp_path: Path, tar_format: int, suffix: str) -> None:
    write(tmp_path / "a.tar", archive(samples(0, 11, suffix), tar_format))
    write(tmp_path / "b.tar", archive(samples(11, 30, suffix, "./sub.dir/"), tar_format))
    (tmp_path / "readme.md").write_text("no archive")
    for path in (tmp_path, tmp_path / "[ab].tar", tmp_path / "*.tar"):
        dataset = WebDataset(str(path))
        assert (dataset.num_samples, dataset.input_shape, dataset.num_classes) == (30, (4, 3), 3)
        order = np.random.default_rng(1).permutation(30)
        np.testing.assert_array_equal(dataset.read_raw(order), X[order])
        np.testing.assert_array_equal(dataset.read_labels(order), order % 3)
    assert dataset.read_raw(np.empty(0, np.int64)).shape == (0, 4, 3)
    config = DataConfig(format="webdataset", path=str(tmp_path / "a.tar"), test_path=str(tmp_path / "b.tar"))
    splits = open_datasets(config, start_mpi())
    assert (splits.train.num_samples, splits.test.num_samples) == (11, 19)
    assert open_inputs(str(tmp_path), "", DataConfig()).num_samples == 30
    assert open_inputs(str(tmp_path / "b.tar"), "", DataConfig()).num_samples == 19


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names(tmp_path: Path, tar_format: int) -> None:
    folder = "ordner-ä/" * 40
    path = write(tmp_path / "a.tar", archive([(folder + name, content) for name, content in samples(0, 4)], tar_format))
    np.testing.assert_array_equal(WebDataset(path).read_raw(np.arange(4)), X[:4])


def test_folders_and_hidden_files_are_passed_over(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        folder = tarfile.TarInfo("x")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in [("x/.DS_Store", b"?"), *samples(0, 3, folder="x/")]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    assert WebDataset(str(tmp_path / "a.tar")).num_samples == 3


@pytest.mark.parametrize("label", [[1, 2], [[1, 2], [3, 4]], 7, 0.5])
def test_labels_of_every_kind(tmp_path: Path, label: Any) -> None:
    members = [("0.npy", npy(X[0])), ("0.json", json.dumps({"label": label}).encode())]
    path = write(tmp_path / "a.tar", archive(members))
    value = WebDataset(path, label_kind="value")
    np.testing.assert_array_equal(value.read_labels(np.zeros(2, np.int64)), np.array([label, label], np.float32))
    assert WebDataset(path, label_kind="none").read_labels(np.zeros(1, np.int64)).tolist() == [-1]
    if label != 0.5:
        classes = WebDataset(path)
        assert classes.label_shape == np.shape(label) and classes.num_classes == np.max(label) + 1


def test_samples_without_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", archive([("0.npy", npy(X[0], (2, 0))), ("1.npy", npy(np.asfortranarray(X[1])))]))
    dataset = WebDataset(path, labels_required=False)
    assert dataset.label_kind == "none"
    np.testing.assert_array_equal(dataset.read_raw(np.arange(2)), X[:2])
    assert open_datasets(DataConfig(format="webdataset", path=path), start_mpi(), DataNeeds("none")).train.num_samples > 0


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg"])
def test_pictures(tmp_path: Path, suffix: str) -> None:
    image_module = pytest.importorskip("PIL.Image")
    members = []
    for i in range(3):
        file = io.BytesIO()
        pixels = np.full((6, 8, 3), 40 * i, np.uint8)
        image_module.fromarray(pixels).save(file, "PNG" if suffix == "png" else "JPEG")
        members += [(f"{i}.{suffix}", file.getvalue()), (f"{i}.cls", b"1\n")]
    path = write(tmp_path / "a.tar", archive(members))
    dataset = WebDataset(path, (4, 4), "grey")
    x = dataset.read_raw(np.arange(3))
    assert x.shape == (3, 4, 4) and np.abs(x.astype(int) - np.array([0, 40, 80])[:, None, None]).max() <= 2
    content = archive([*members[:-2], (f"2.{suffix}", members[-2][1][:50]), ("2.cls", b"0")])
    with pytest.raises(DataError, match=r"a\.tar, offset [0-9]+: expected a picture"):
        WebDataset(write(tmp_path / "a.tar", content)).read_raw(np.arange(3))
    with pytest.raises(DataError, match=r"a\.tar, offset [0-9]+: expected inputs of one kind, found \.npy after others"):
        WebDataset(write(tmp_path / "a.tar", archive([*members, ("9.npy", npy(X[0])), ("9.cls", b"1")])))


def with_type(kind: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        info = tarfile.TarInfo("0.npy")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    return file.getvalue()


def with_header(place: slice, value: bytes) -> bytes:
    """Return an archive whose second header is changed, and its checksum right."""
    content = bytearray(archive(samples(0, 2)))
    start = 1024
    content[start + place.start : start + place.stop] = value
    content[start + 148 : start + 156] = b" " * 8
    content[start + 148 : start + 156] = b"%06o\0 " % sum(content[start : start + 512])
    return bytes(content)


GOOD = archive(samples(0, 4))
END = len(archive(samples(0, 1)).rstrip(b"\0"))
WRONG = {
    "empty": (b"", "found an empty file"),
    "no samples": (archive([]), r"expected samples with an input \(\.npy"),
    "only text": (archive([("a.txt", b"x")]), "expected samples with an input"),
    "magic": (
        b"PK\x03\x04" + bytes(600),
        "offset 0: expected the header of a tar archive, found a wrong checksum: .*looks like npz",
    ),
    "changed header": (GOOD[:1030] + b"x" + GOOD[1031:], "offset 1024: expected the header of a tar archive"),
    "cut in a header": (GOOD[:1100], "offset 1024: expected a header or a block of zeros, found 76 bytes: .* cut short"),
    "cut in a member": (GOOD[:520], r"offset 0: expected a member of \d+ bytes, found 8 before the end of the file"),
    "cut before the end": (GOOD[:1024], "offset 1024: expected a header or a block of zeros, found 0 bytes"),
    "absolute": (archive([("/etc/0.npy", npy(X[0]))]), "offset 0: expected the name of a file in the archive's own folder, .*/etc"),
    "outside": (archive([("a/../../0.npy", npy(X[0]))]), "offset 0: expected the name of a file in the archive's own folder"),
    "encoding": (archive([("\udcff.npy", npy(X[0]))]), r"offset 0: expected a name in UTF-8, found b'\\xff.npy'"),
    "link": (with_type(tarfile.SYMTYPE), "offset 0: expected plain files, found '0.npy' of type '2'"),
    "hard link": (with_type(tarfile.LNKTYPE), "expected plain files, found '0.npy' of type '1'"),
    "device": (with_type(tarfile.CHRTYPE), "expected plain files, found '0.npy' of type '3'"),
    "sparse": (with_type(tarfile.GNUTYPE_SPARSE), "expected plain files, found '0.npy' of type 'S'"),
    "negative size": (with_header(slice(124, 136), b"\xff" * 12), "offset 1024: expected the size of a member, found ff ff"),
    "size": (with_header(slice(124, 136), b"9" * 12), "offset 1024: expected the size of a member"),
    "huge size": (with_header(slice(124, 136), b"\x80" + b"\x7f" * 11), "offset 1024: expected a member of .* cut short"),
    "two inputs": (archive([*samples(0, 1), ("0000.png", b"")]), "offset 512: expected one input .* found npy, cls, txt, png"),
    "no input": (archive([("0.cls", b"1")]), "offset 512: expected one input"),
    "twice": (archive([("0.npy", b""), ("0.npy", b"")]), r"offset 1024: expected one member \.npy a sample"),
    "apart": (
        archive([*samples(0, 2), ("0000.json", b"")]),
        "members of sample '0000' next to each other, found '0000.json' apart",
    ),
    "label": (archive([("0.npy", npy(X[0])), ("0.cls", b"cat")]), "expected a number in '0.cls': could not convert"),
    "underscore": (archive([("0.npy", npy(X[0])), ("0.cls", b"1_0")]), "expected a number in '0.cls'"),
    "long label": (archive([("0.npy", npy(X[0])), ("0.cls", b"1" * 5000)]), "expected a number in '0.cls'"),
    "huge label": (archive([("0.npy", npy(X[0])), ("0.json", b" " * (1 << 20) + b"1")]), "1048577 bytes: mend"),
    "json": (archive([("0.npy", npy(X[0])), ("0.json", b"{")]), 'expected an object with a "label"'),
    "json without": (archive([("0.npy", npy(X[0])), ("0.json", b"{}")]), 'expected an object with a "label"'),
    "json text": (archive([("0.npy", npy(X[0])), ("0.json", b'{"label": "a"}')]), "found 'a': mend"),
    "json deep": (archive([("0.npy", npy(X[0])), ("0.json", b"[" * 100_000)]), 'expected an object with a "label"'),
    "negative": (archive([("0.npy", npy(X[0])), ("0.cls", b"-1")]), "sample 0: expected an integer label"),
    "shapes": (
        archive([*samples(0, 1), ("1.npy", npy(X[1])), ("1.json", b'{"label": [1, 2]}')]),
        "expected labels of one shape, found several",
    ),
    "some labels": (
        archive([*samples(0, 1), ("1.npy", npy(X[1]))]),
        r"offset [0-9]+: expected a label \(\.cls or \.json\), found none",
    ),
    "npy": (archive([("0.npy", b"\x93NUMPY"), ("0.cls", b"1")]), "offset 512: expected an NPY array"),
    "npy header": (archive([("0.npy", npy(X[0])[:-1]), ("0.cls", b"1")]), "offset 512: expected an NPY array"),
    "npy object": (archive([("0.npy", npy(X[0]).replace(b"<f4", b"|O8")), ("0.cls", b"1")]), "offset 512: expected an NPY array"),
    "npy text": (archive([("0.npy", npy(np.array(["a"]))), ("0.cls", b"1")]), "expected real numbers, found elements of type <U1"),
    "npy scalar": (archive([("0.npy", npy(np.array(1.0))), ("0.cls", b"1")]), "expected inputs of shape"),
    "npy shapes": (archive([*samples(0, 1), ("1.npy", npy(X[1, 1:])), ("1.cls", b"1")]), r"shape \(4, 3\) .* found \(3, 3\)"),
    "npy types": (archive([*samples(0, 1), ("1.npy", npy(X[1].astype("f8"))), ("1.cls", b"1")]), "found .* and float64"),
}


@pytest.mark.parametrize("content, message", WRONG.values(), ids=WRONG)
def test_damage_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = write(tmp_path / "a.tar", content)
    with pytest.raises(DataError, match=message) as caught:
        WebDataset(path).read_raw(np.arange(2))
    assert path in str(caught.value)


@pytest.mark.parametrize(
    "header, message",
    [
        (b"29 size=99999999999999999999\n", "expected the size of a member, found '999"),
        (b"11 size=-1\n", "expected the size of a member, found '-1'"),
        (b"12 path=\xff.a\n", "expected a name in UTF-8"),
        (b"16 path=/0.npy\n", "expected extended attributes"),
        (b"15 path=/0.npy\n", "archive's own folder, found '/0.npy'"),
        (b"25 GNU.sparse.major=1....\n"[:25], "expected extended attributes"),
        (b"22 GNU.sparse.major=1\n", "found a sparse one"),
        (b"x", "expected extended attributes, found b'x'"),
        (b"9" * 70_000, "attributes of up to 65536 bytes, found more"),
    ],
)
def test_extended_headers(tmp_path: Path, header: bytes, message: str) -> None:
    info = tarfile.TarInfo("attributes")
    info.type, info.size = tarfile.XHDTYPE, len(header)
    content = info.tobuf() + header + bytes(-len(header) % 512) + archive(samples(0, 1))
    path = write(tmp_path / "a.tar", content)
    with pytest.raises(DataError, match=message) as caught:
        WebDataset(path)
    assert path in str(caught.value)


def test_missing_archives(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected tar archives, found none"):
        WebDataset(str(tmp_path))
    with pytest.raises(DataError, match="expected tar archives, found none"):
        WebDataset(str(tmp_path / "*.tar"))
    with pytest.raises(DataError, match="No such file"):
        WebDataset(str(tmp_path / "none.tar"))


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=2000)
@given(
    content=damaged(
        archive(samples(0, 2)), archive(samples(0, 2, "json"), tarfile.PAX_FORMAT), archive(samples(0, 1, folder="d" * 120 + "/"))
    )
)
def test_any_bytes_are_data_or_a_data_error(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "a.tar", content)
    try:
        dataset = WebDataset(path)
        x, y = dataset.read_raw(np.arange(dataset.num_samples)), dataset.read_labels(np.arange(dataset.num_samples))
    except DataError as error:
        assert path in str(error)
        return
    assert len(x) == len(y) and x.shape[1:] == dataset.input_shape
