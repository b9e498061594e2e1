"""Reading slices of safetensors files, refusing damaged ones, and writing them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lepton_mpi.errors import CheckpointError
from lepton_mpi.interop.safetensors_file import SafetensorsFile, SafetensorsWriter
from lepton_mpi.interop.safetensors_header import MAX_HEADER_BYTES


def put(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    """Write a file as it should not be."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(start: int, stop: int, dtype: Any = "F32", shape: Any = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(stop - start) // 4] if shape is None else shape, "data_offsets": [start, stop]}


def test_slices_of_every_dtype_against_safetensors(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    save_file = pytest.importorskip("safetensors.torch").save_file
    whole = torch.arange(105, dtype=torch.float32).reshape(3, 5, 7) / 8 - 3
    kinds = {str(kind): whole.to(kind) for kind in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}
    save_file({**kinds, "mask": torch.ones(3, dtype=torch.bool), "a": torch.ones(3, dtype=torch.uint8)}, tmp_path / "w.safetensors")
    file = SafetensorsFile(tmp_path / "w.safetensors")
    assert file.shapes["mask"] == (3,)
    for name, values in kinds.items():
        found = file.read(name, (1, 0, 2), (2, 5, 3))
        assert found.dtype == np.float32
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found, values.float().numpy()[1:3, 0:5, 2:5])
    with pytest.raises(CheckpointError, match="tensor mask: expected one of F64, F32, F16, BF16, got BOOL"):
        file.read("mask", (0,), (3,))
    file.close()


def test_bf16_keeps_infinities_and_nan(tmp_path: Path) -> None:
    bits = np.array([0x7F80, 0xFF80, 0x7FC0, 0x8000, 0x3F80], "<u2")
    put(tmp_path / "w.safetensors", {"x": entry(0, 10, "BF16", [5])}, bits.tobytes())
    found = SafetensorsFile(tmp_path / "w.safetensors").read("x", (0,), (5,))
    np.testing.assert_array_equal(found, np.array([np.inf, -np.inf, np.nan, -0.0, 1.0], np.float32))
    assert np.signbit(found[3])


@pytest.mark.parametrize(
    ("starts", "shape"), [((0, 0), (4, 5)), ((-1, 0), (1, 1)), ((0, 5), (1, 1)), ((0,), (3,)), ((0, 0), (-1, 1))]
)
def test_a_slice_outside_of_the_tensor(tmp_path: Path, starts: tuple[int, ...], shape: tuple[int, ...]) -> None:
    with SafetensorsWriter(tmp_path / "w.safetensors", {"x": (3, 5)}) as writer:
        writer.write("x", np.zeros((3, 5), np.float32))
    with pytest.raises(ValueError, match="has no slice"):
        SafetensorsFile(tmp_path / "w.safetensors").read("x", starts, shape)


def test_a_closed_file(tmp_path: Path) -> None:
    file = SafetensorsFile(put(tmp_path / "w.safetensors", {"x": entry(0, 4)}, b"1234"))
    file.close()
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.read("x", (0,), (1,))


GOOD = {"x": entry(0, 8), "y": entry(8, 12)}


@pytest.mark.parametrize(
    ("header", "data", "length", "message"),
    [
        (GOOD, b"x" * 11, None, "end at byte .* the file at .* truncated"),
        (GOOD, b"x" * 13, None, "but the file goes on"),
        (GOOD, b"x" * 12, MAX_HEADER_BYTES + 1, "at most 100000000 bytes"),
        (GOOD, b"x" * 12, 2**64 - 1, "at most 100000000 bytes"),
        (GOOD, b"x" * 12, 5000, "beyond the end of the file"),
        (b"{not json", b"", None, "not JSON"),
        (b"\xff\xfe", b"", None, "not JSON"),
        (b"[" * 100000, b"", None, "not JSON"),
        (b"[1]", b"", None, "expected a JSON object"),
        (b'{"x": 1, "x": 2}', b"", None, "names 'x' twice"),
        ({"x": 1}, b"", None, "expected dtype, shape and data_offsets"),
        ({"x": {"dtype": "F32", "shape": [1]}}, b"", None, "expected dtype, shape and data_offsets"),
        ({"x": entry(0, 4, "F31")}, b"1234", None, "one of the dtypes"),
        ({"x": entry(0, 4, ["F32"])}, b"1234", None, "one of the dtypes"),
        ({"x": entry(0, 4, shape=[-1])}, b"1234", None, "list of sizes as shape"),
        ({"x": entry(0, 4, shape=[True])}, b"1234", None, "list of sizes as shape"),
        ({"x": entry(0, 4, shape=[1.0])}, b"1234", None, "list of sizes as shape"),
        ({"x": entry(0, 4, shape="1")}, b"1234", None, "list of sizes as shape"),
        ({"x": {**entry(0, 4), "data_offsets": [0, 4, 4]}}, b"1234", None, "expected data_offsets"),
        ({"x": {**entry(0, 4), "data_offsets": [4, 0]}}, b"1234", None, "expected data_offsets"),
        ({"x": entry(0, 4, shape=[2])}, b"1234", None, r"of shape \(2,\) takes 8 bytes, data_offsets give 4"),
        ({"x": entry(0, 4, shape=[2**62, 2**62])}, b"1234", None, "data_offsets give 4"),
        ({"x": entry(0, 8), "y": entry(4, 12)}, b"x" * 12, None, "tensor y: begins at byte .*, inside another"),
        ({"x": entry(0, 8), "y": entry(0, 8)}, b"x" * 8, None, "tensor y: begins at byte .*, inside another"),
        ({"x": entry(0, 4), "y": entry(8, 12)}, b"x" * 12, None, "4 bytes before it belong to none"),
        ({"__metadata__": {"format": 1}}, b"", None, "__metadata__: expected strings"),
        ({"__metadata__": "pt"}, b"", None, "__metadata__: expected strings"),
    ],
)
def test_damaged_files(tmp_path: Path, header: Any, data: bytes, length: int | None, message: str) -> None:
    path = put(tmp_path / "w.safetensors", header, data, length)
    with pytest.raises(CheckpointError, match=message) as caught:
        SafetensorsFile(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"1234567"])
def test_files_without_even_a_length(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="the file ends after"):
        SafetensorsFile(tmp_path / "w.safetensors")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read the weights: No such file"):
        SafetensorsFile(tmp_path / "w.safetensors")


def test_what_is_written_is_read_back_by_us_and_by_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    tensors = {"b.weight": np.arange(15, dtype=np.float32).reshape(3, 5), "é": np.zeros((0, 3), np.float32), "s": np.float32(2.5)}
    with SafetensorsWriter(path, {name: np.shape(values) for name, values in tensors.items()}, {"step": "7"}) as writer:
        for name, values in tensors.items():
            writer.write(name, values)
            assert not path.exists()
    file = SafetensorsFile(path)
    assert dict(file.metadata) == {"format": "pt", "step": "7"}
    for name, values in tensors.items():
        np.testing.assert_array_equal(file.read(name, (0,) * np.ndim(values), np.shape(values)), values)
    theirs = pytest.importorskip("safetensors.numpy").load_file(path)
    assert set(theirs) == set(tensors)
    for name, values in tensors.items():
        np.testing.assert_array_equal(theirs[name], values)
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_columns_are_written_in_rows(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3).T
    with SafetensorsWriter(tmp_path / "w.safetensors", {"x": (3, 2)}) as writer:
        writer.write("x", values)
    np.testing.assert_array_equal(SafetensorsFile(tmp_path / "w.safetensors").read("x", (0, 0), (3, 2)), values)


def test_an_error_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), SafetensorsWriter(path, {"x": (1,)}):
        raise KeyError("x")
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(("name", "shape"), [("y", (2,)), ("x", (3,)), ("x", (2, 1))])
def test_tensors_come_as_announced(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    with (
        pytest.raises(ValueError, match=r"expected tensor x of shape \(2,\)"),
        SafetensorsWriter(tmp_path / "w.safetensors", {"x": (2,), "y": (2,)}) as writer,
    ):
        writer.write(name, np.zeros(shape, np.float32))


def test_all_tensors_must_come(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tensor x has been announced"), SafetensorsWriter(tmp_path / "w.safetensors", {"x": (2,)}):
        pass
    assert not any(tmp_path.iterdir())
