"""The packed form: round trips, what the manifest must say, every kind of damage, and random changes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lepton_mpi.config.schema import DataConfig
from lepton_mpi.data.dataset import ArrayDataset, Dataset
from lepton_mpi.data.formats.registry import open_format, open_unlabelled
from lepton_mpi.data.formats.tokens import TokenWindows
from lepton_mpi.data.needs import DataNeeds
from lepton_mpi.data.storage.conversion import Source, convert
from lepton_mpi.data.storage.packed import open_packed, verify_packed
from lepton_mpi.data.storage.packed_manifest import PackedManifest, digest_body
from lepton_mpi.errors import ConfigError, DataError
from lepton_mpi.runtime.mpi import start_mpi

X = np.arange(60).reshape(10, 2, 3)
Y = np.arange(10) % 3
LABELS = {
    "none": None,
    "class": Y,
    "many classes": Y * 300,
    "classes": np.arange(20).reshape(10, 2) % 3,
    "value": np.linspace(-1, 1, 10, dtype=np.float32),
    "values": np.linspace(-1, 1, 30, dtype=np.float32).reshape(10, 3),
}


def pack(dataset: Dataset, folder: Path, name: str = "out") -> str:
    convert(dataset, Source("npz"), folder / name, start_mpi())
    return str(folder / name)


@pytest.fixture
def packed(tmp_path: Path) -> str:
    return pack(ArrayDataset("made", X.astype(np.int16), Y, 3), tmp_path)


@pytest.fixture
def text(tmp_path: Path) -> str:
    tokens = np.random.default_rng(0).integers(0, 500, 101).astype("<u2")
    return pack(TokenWindows("text", tokens, 7, 500), tmp_path, "text")


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("dtype", ["?", "u1", "<i8", ">i4", "f2", ">f4", "f8"])
def test_round_trip(tmp_path: Path, dtype: str, labels: np.ndarray | None) -> None:
    before = ArrayDataset("made", X.astype(dtype), labels, 0 if labels is None else int(labels.max()) + 1)
    after = open_packed(pack(before, tmp_path), label_kind=before.label_kind)
    shapes = [(d.num_samples, d.input_shape, d.label_kind, d.label_shape, d.num_classes) for d in (before, after)]
    assert shapes[0] == shapes[1] and after.name == "out"
    indices = np.array([3, 9, 3, 0])
    raw = after.read_raw(indices)
    assert raw.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(raw, before.read_raw(indices))
    np.testing.assert_array_equal(after.read_labels(indices), before.read_labels(indices))
    assert after.read_labels(indices).dtype == before.read_labels(indices).dtype


def test_the_files_are_mapped_and_plain_npy(packed: str) -> None:
    dataset = open_packed(packed)
    inputs = np.load(os.path.join(packed, "inputs.npy"), mmap_mode="r+")
    np.testing.assert_array_equal(inputs, X)
    inputs[4] = 77
    inputs.flush()
    assert (dataset.read_raw(np.array([4])) == 77).all()  # so no copy was made
    assert np.load(os.path.join(packed, "labels.npy")).dtype == np.uint8


@pytest.mark.parametrize("context", [3, 7, 100])
def test_text_is_its_tokens_whatever_the_context(text: str, context: int) -> None:
    tokens = np.random.default_rng(0).integers(0, 500, 101).astype("<u2")
    before, after = TokenWindows("text", tokens, context, 500), open_packed(text, context=context)
    assert isinstance(after, TokenWindows) and after.num_classes == 500
    everything = np.arange(before.num_samples)
    np.testing.assert_array_equal(after.read_raw(everything), before.read_raw(everything))
    np.testing.assert_array_equal(after.read_labels(everything), before.read_labels(everything))
    assert not os.path.exists(os.path.join(text, "labels.npy"))


def test_labels_as_another_kind(tmp_path: Path, packed: str, text: str) -> None:
    assert open_packed(packed, label_kind="none").label_kind == "none"
    values = open_packed(packed, label_kind="value")
    np.testing.assert_array_equal(values.read_labels(np.arange(10)), Y.astype(np.float32))
    whole = pack(ArrayDataset("made", X, Y.astype(np.float32), 0), tmp_path, "whole")
    assert open_packed(whole).num_classes == 3
    fractions = pack(ArrayDataset("made", X, Y + np.float32(0.5), 0), tmp_path, "fractions")
    with pytest.raises(DataError, match=r"labels.npy, sample 0: expected an integer label"):
        open_packed(fractions)
    bare = pack(ArrayDataset("made", X, None, 0), tmp_path, "bare")
    assert open_packed(bare, labels_required=False).label_kind == "none"
    with pytest.raises(DataError, match="expected labelled samples"):
        open_packed(bare)
    assert open_packed(packed, 5).num_classes == 5
    with pytest.raises(DataError, match=r"labels.npy, sample 2: expected an integer label 0 .. 1 \(2 classes\), found '2'"):
        open_packed(packed, 2)
    with pytest.raises(DataError, match="text has tokens"):
        open_packed(text, label_kind="value", context=3)
    with pytest.raises(ConfigError, match=r"model.context"):
        open_packed(text)


def test_through_the_formats(packed: str) -> None:
    assert open_format("packed", packed, "", DataConfig(), DataNeeds(), 0).num_classes == 3
    assert open_unlabelled(packed, "", DataConfig(), DataNeeds(), 0).num_samples == 10
    assert open_unlabelled(packed, "packed", DataConfig(), DataNeeds(), 0).num_samples == 10


def rewrite(folder: str, **changes: object) -> None:
    """Change keys of a manifest and its digest with them; None removes a key, and a dict changes keys of an array."""
    path = Path(folder, "manifest.json")
    body = json.loads(path.read_text())
    del body["sha256"]
    for key, value in changes.items():
        if value is None:
            del body[key]
        elif isinstance(value, dict):
            body[key] = {k: v for k, v in {**body[key], **value}.items() if v is not None}
        else:
            body[key] = value
    path.write_text(json.dumps({**body, "sha256": digest_body(body)}))


IMPOSSIBLE = {
    "version": ({"version": 2}, "expected version 1, found 2"),
    "format": ({"format": "other"}, "expected a manifest of"),
    "layout": ({"layout": "columns"}, "expected a layout of rows or tokens, found 'columns'"),
    "kind": ({"label_kind": "colour"}, "expected a label kind of"),
    "no labels": ({"label_kind": "none"}, "expected labels where their kind is not none"),
    "samples": ({"num_samples": -1}, "at least 0"),
    "pieces": ({"piece_nbytes": 0}, "pieces of some bytes"),
    "rows": ({"num_samples": 11}, "inputs.npy: expected 11 rows"),
    "tokens": ({"layout": "tokens"}, "expected one row of unsigned tokens"),
    "outside": ({"inputs": {"name": "../inputs.npy"}}, r"expected the name of a file in the folder, found '../inputs.npy'"),
    "absolute": ({"labels": {"name": "/etc/passwd"}}, "expected the name of a file in the folder, found '/etc/passwd'"),
    "above": ({"inputs": {"name": ".."}}, "expected the name of a file in the folder"),
    "objects": ({"inputs": {"dtype": "|O"}}, r"expected a type of real numbers, found '\|O'"),
    "shape": ({"inputs": {"shape": [10, 0]}}, "no dim of 0"),
    "no shape": ({"inputs": {"shape": None}}, "not a manifest"),
    "shape of text": ({"inputs": {"shape": "ab"}}, "expected 10 rows"),
    "small": ({"inputs": {"nbytes": 5}}, "expected at least the bytes of"),
    "digest": ({"inputs": {"sha256": "00"}}, "expected a SHA-256 that follows"),
    "digests": ({"inputs": {"pieces": []}}, "expected a SHA-256 for each of 1 pieces"),
    "no digest": ({"inputs": {"pieces": ["x"]}}, "expected a SHA-256 for each of 1 pieces"),
    "unknown key": ({"inputs": {"colour": 1}}, "not a manifest"),
    "other shape": ({"inputs": {"shape": [10, 6]}}, r"inputs.npy, offset 0: expected \(10, 6\) of <i2 in C order"),
    "other type": ({"inputs": {"dtype": "<u2"}}, r"expected \(10, 2, 3\) of <u2 in C order, as the manifest says, found .* of <i2"),
    "missing file": ({"inputs": {"name": "x.npy"}}, "x.npy: expected a readable file"),
}


@pytest.mark.parametrize(("changes", "message"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_impossible_manifests(packed: str, changes: dict[str, object], message: str) -> None:
    rewrite(packed, **changes)
    with pytest.raises(DataError, match=message):
        open_packed(packed)


@pytest.mark.parametrize("key", PackedManifest.__dataclass_fields__)
def test_missing_keys(packed: str, key: str) -> None:
    rewrite(packed, **{key: None})
    with pytest.raises(DataError, match=f"manifest.json: expected the key '{key}', found none"):
        open_packed(packed)


def test_no_manifests(packed: str, tmp_path: Path) -> None:
    path = Path(packed, "manifest.json")
    whole = path.read_text()
    for content, message in (
        (whole[:-20], "expected JSON"),
        (b"\xff" + whole.encode(), "offset 0: expected JSON"),
        ("[]", "expected a manifest of"),
        ("[" * 100_000, "deeply nested"),
        (whole.replace('"num_classes": 3', '"num_classes": 4'), "altered since it was written"),
        (whole.replace('"sha256"', '"sha"'), "expected the key 'sha256', found none"),
    ):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(DataError, match=message):
            open_packed(packed)
    path.unlink()
    for folder in (packed, str(tmp_path / "missing"), "a\0b"):
        with pytest.raises(DataError, match=r"expected a folder with a manifest.json"):
            open_packed(folder)
    os.truncate(tmp_path / "out" / "inputs.npy", 0)
    with pytest.raises(DataError, match="expected a folder that convert made, found a file"):
        open_packed(str(tmp_path / "out" / "inputs.npy"))
    with path.open("wb") as file:
        file.truncate(1 << 29)
    with pytest.raises(DataError, match="expected a manifest of at most"):
        open_packed(packed)


def damage_truncate(folder: Path) -> None:
    os.truncate(folder / "inputs.npy", 200)


def damage_append(folder: Path) -> None:
    with (folder / "labels.npy").open("ab") as file:
        file.write(b"x")


def damage_remove(folder: Path) -> None:
    (folder / "labels.npy").unlink()


def damage_link(folder: Path) -> None:
    shutil.move(folder / "labels.npy", folder.parent / "labels.npy")
    (folder / "labels.npy").symlink_to(folder.parent / "labels.npy")


def damage_pickle(folder: Path) -> None:
    np.save(folder / "inputs.npy", np.array([[None] * 3] * 10), allow_pickle=True)
    rewrite(str(folder), inputs={"nbytes": (folder / "inputs.npy").stat().st_size})


def damage_order(folder: Path) -> None:
    np.save(folder / "inputs.npy", np.asfortranarray(X.astype(np.int16)))


DAMAGED = {
    damage_truncate: "inputs.npy, offset 200: expected 248 bytes by the manifest, found 200",
    damage_append: "labels.npy, offset 138: expected 138 bytes by the manifest, found 139",
    damage_remove: "labels.npy: expected a readable file, as the manifest says: No such file",
    damage_link: "labels.npy: expected a file in the folder itself, found a link",
    damage_pickle: "inputs.npy: expected an NPY array of numbers: .*objects",
    damage_order: "inputs.npy, offset 0: expected .* in C order",
}


@pytest.mark.parametrize("damage", DAMAGED, ids=[damage.__name__ for damage in DAMAGED])
def test_damaged_files(packed: str, damage) -> None:
    damage(Path(packed))
    for act in (open_packed, lambda path: verify_packed(path, start_mpi())):
        with pytest.raises(DataError, match=DAMAGED[damage]):
            act(packed)


def test_verify_names_the_piece(tmp_path: Path) -> None:
    folder = pack(ArrayDataset("made", np.zeros((40, 1 << 20), np.uint8), None, 0), tmp_path)
    assert len(verify_packed(folder, start_mpi()).inputs.pieces) == 3
    with open(os.path.join(folder, "inputs.npy"), "r+b") as file:
        file.seek(20 << 20)
        file.write(b"\1")
    assert open_packed(folder, label_kind="none").num_samples == 40
    with pytest.raises(DataError, match=r"inputs.npy, offset 16777216: expected bytes 16777216 .. 33554431 with SHA-256"):
        verify_packed(folder, start_mpi())


def test_the_checksums_are_those_of_the_page(tmp_path: Path) -> None:
    """docs/data_format.md, in its own words; names that are no text in UTF-8 do no harm."""
    dataset = ArrayDataset("caf\udce9", np.ones((40, 1 << 20), np.uint8), np.arange(40) % 2, 2)
    dataset.class_names = ("\u00e9t\u00e9", "\udcff")
    folder = pack(dataset, tmp_path)
    manifest = json.loads(Path(folder, "manifest.json").read_bytes())
    for key in ("inputs", "labels"):
        data = Path(folder, manifest[key]["name"]).read_bytes()
        digests = [hashlib.sha256(data[i : i + 2**24]).digest() for i in range(0, len(data), 2**24)]
        assert hashlib.sha256(b"".join(digests)).hexdigest() == manifest[key]["sha256"]
        assert [digest.hex() for digest in digests] == manifest[key]["pieces"]
    stated = manifest.pop("sha256")
    assert hashlib.sha256(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()).hexdigest() == stated
    assert open_packed(folder).class_names == dataset.class_names


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(["inputs.npy", "labels.npy", "manifest.json"]), place=st.integers(0, 10_000), value=st.integers(1, 255))
def test_any_changed_byte_is_found(packed: str, name: str, place: int, value: int) -> None:
    path = Path(packed, name)
    whole = path.read_bytes()
    content = bytearray(whole)
    content[place % len(whole)] ^= value
    path.write_bytes(content)
    try:
        if name == "manifest.json" and _reads_alike(bytes(content), whole):
            return
        with pytest.raises(DataError):
            verify_packed(packed, start_mpi())
    finally:
        path.write_bytes(whole)


def _reads_alike(one: bytes, other: bytes) -> bool:
    try:
        return bool(json.loads(one) == json.loads(other))  # another kind of white space
    except ValueError:
        return False


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=300) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps).map(str.encode)
)
def test_any_manifest_is_read_or_refused(packed: str, content: bytes) -> None:
    Path(packed, "manifest.json").write_bytes(content)
    with pytest.raises(DataError):
        open_packed(packed)
