"""What stands at the head of a safetensors file: where each tensor lies. Nothing of it is believed unchecked.

The format: 8 bytes little-endian with the length N of the header, N bytes of JSON, then the tensors' bytes, little-endian
and in C order, without gaps (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

LENGTH_BYTES = 8
# As the library of the format has it.
MAX_HEADER_BYTES = 100_000_000
METADATA_KEY = "__metadata__"

_BYTES_A_VALUE = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}


class HeaderError(ValueError):
    """A header says what cannot be; the message says what, and the caller which file."""


@dataclass(frozen=True)
class TensorEntry:
    """A tensor as the header declares it.

    Attributes:
        dtype: name of the format, e.g. "F32".
        shape: its shape.
        start, stop: where its bytes lie, from the beginning of the file.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_header(file: BinaryIO, file_bytes: int) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Read and check the header of a file. Local.

    Args:
        file: open at its beginning.
        file_bytes: length of the whole file.

    Returns:
        The tensors in the order of the header, and the metadata.

    Raises:
        HeaderError: the header is not one of the format, or the tensors do not fill the file exactly.
    """
    prefix = file.read(LENGTH_BYTES)
    if len(prefix) < LENGTH_BYTES:
        raise HeaderError(f"expected {LENGTH_BYTES} bytes with the length of the header, the file ends after {len(prefix)}")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES:
        raise HeaderError(f"expected a header of at most {MAX_HEADER_BYTES} bytes, the file says {length}")
    if LENGTH_BYTES + length > file_bytes:
        raise HeaderError(f"the header of {length} bytes goes beyond the end of the file at {file_bytes}; it is truncated")
    declared = _parse(file.read(length))
    metadata = declared.pop(METADATA_KEY, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise HeaderError(f"{METADATA_KEY}: expected strings by name, got {metadata!r:.80}")
    first = LENGTH_BYTES + length
    entries = {name: _entry(name, value, first) for name, value in declared.items()}
    _check_extents(entries, first, file_bytes)
    return entries, metadata


def make_header(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> bytes:
    """Return the head of a file of float32 tensors that follow each other in this order, length included. Local."""
    declared: dict[str, Any] = {METADATA_KEY: dict(metadata)}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * _BYTES_A_VALUE["F32"]
        declared[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(declared, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)  # the tensors begin at a multiple of 8 bytes
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def _parse(text: bytes) -> dict[str, Any]:
    def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise HeaderError(f"the header names {twice!r} twice")
        return found

    try:
        declared = json.loads(text.decode(), object_pairs_hook=unique)
    except HeaderError:
        raise
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"the header is not JSON: {error}") from error
    if not isinstance(declared, dict):
        raise HeaderError(f"expected a JSON object as header, got {declared!r:.80}")
    return declared


def _entry(name: str, value: Any, first: int) -> TensorEntry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise HeaderError(f"tensor {name}: expected dtype, shape and data_offsets, got {value!r:.80}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BYTES_A_VALUE:
        raise HeaderError(f"tensor {name}: expected one of the dtypes {', '.join(_BYTES_A_VALUE)}, got {dtype!r:.80}")
    if not _is_sizes(shape):
        raise HeaderError(f"tensor {name}: expected a list of sizes as shape, got {shape!r:.80}")
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise HeaderError(f"tensor {name}: expected data_offsets [start, stop], got {offsets!r:.80}")
    expected, found = math.prod(shape) * _BYTES_A_VALUE[dtype], offsets[1] - offsets[0]
    if expected != found:
        raise HeaderError(f"tensor {name}: {dtype} of shape {tuple(shape)} takes {expected} bytes, data_offsets give {found}")
    return TensorEntry(dtype, tuple(shape), first + offsets[0], first + offsets[1])


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _check_extents(entries: Mapping[str, TensorEntry], first: int, file_bytes: int) -> None:
    """Require that the tensors cover all bytes after the header exactly once."""
    end = first
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start < end:
            raise HeaderError(f"tensor {name}: begins at byte {entry.start}, inside another that ends at {end}")
        if entry.start > end:
            raise HeaderError(f"tensor {name}: begins at byte {entry.start}, {entry.start - end} bytes before it belong to none")
        end = entry.stop
    if end > file_bytes:
        raise HeaderError(f"the tensors end at byte {end}, the file at {file_bytes}; it is truncated")
    if end < file_bytes:
        raise HeaderError(f"the tensors end at byte {end}, but the file goes on to {file_bytes}")
