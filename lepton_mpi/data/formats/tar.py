"""Where the members of a tar archive lie, read from its headers alone, so that they can be used in place.

Every byte that is not understood is an error: an archive that was cut or changed must not pass for a smaller one.
Members outside the folder of the archive (absolute names, `..`), links, devices and sparse files are refused.

Source: POSIX.1-2001, pax, "ustar Interchange Format" and "pax Extended Header"; GNU tar manual, "Basic Tar Format", for
names over 100 bytes (type L) and sizes in base 256.
"""

from __future__ import annotations

import mmap
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass

from lepton_mpi.data.validation import suggest_format
from lepton_mpi.errors import DataError

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_LARGEST_NOTE = 1 << 16  # bytes of a long name or of extended attributes
_FILES, _FOLDER, _LONG_NAME, _EXTENDED, _GLOBAL = (b"0", b"\0", b"7"), b"5", b"L", b"x", b"g"


@dataclass(frozen=True)
class TarMember:
    """A file in an archive: its name, where its bytes start, and how many they are."""

    name: str
    offset: int
    size: int


def list_members(archive: mmap.mmap, path: str) -> Iterator[TarMember]:
    """Yield the files of an archive in their order. Local.

    Args:
        archive: the whole archive, not compressed.
        path: its path, for messages.

    Raises:
        DataError: a header is damaged or no header at all, a name is no UTF-8 or leads elsewhere, a member is no plain
            file or folder, or the archive ends without the block of zeros that closes it.
    """
    offset, notes = 0, dict[str, str]()
    while (header := archive[offset : offset + _BLOCK]) != _ZEROS:
        kind, size = _check_header(header, offset, path)
        if "size" in notes:
            size = _read_decimal(notes["size"], offset, path)
        start = offset + _BLOCK
        if start + size > len(archive):
            raise DataError(
                f"{path}, offset {offset}: expected a member of {size} bytes, found {len(archive) - start} before the end of the "
                "file: the archive is cut short, copy it again"
            )
        if kind in (_LONG_NAME, _EXTENDED, _GLOBAL):
            notes |= _read_notes(kind, archive[start : start + min(size, _LARGEST_NOTE + 1)], offset, path)
        else:
            name = _check_name(notes["path"] if "path" in notes else _own_name(header, offset, path), offset, path)
            if kind in _FILES:
                yield TarMember(name, start, size)
            elif kind != _FOLDER:
                raise DataError(
                    f"{path}, offset {offset}: expected plain files, found {name!r} of type {kind.decode('latin-1')!r} (a link, a "
                    "device or a sparse file): store the file itself"
                )
            notes = {}
        offset = start + -(-size // _BLOCK) * _BLOCK


def _check_header(header: bytes, offset: int, path: str) -> tuple[bytes, int]:
    """Return type and size that a header tells."""
    place = f"{path}, offset {offset}"
    if len(header) < _BLOCK:
        raise DataError(
            f"{place}: expected a header or a block of zeros, found {len(header)} bytes: the archive is cut short, copy it again"
        )
    total = sum(header) - sum(header[148:156]) + 8 * ord(" ")  # the sum is over the header with blanks in its own place
    if _read_octal(header[148:156]) != total:
        raise DataError(
            f"{place}: expected the header of a tar archive, found a wrong checksum: the archive is damaged or compressed; "
            f"{suggest_format(path, 'webdataset')}"
        )
    if header[124] & 0x80:
        size = int.from_bytes(header[124:136], "big") & ~(0x80 << 88) if header[124] == 0x80 else -1
    else:
        size = _read_octal(header[124:136])
    if size < 0:
        raise DataError(f"{place}: expected the size of a member, found {header[124:136].hex(' ')}: the archive is damaged")
    return header[156:157], 0 if header[156:157] == _FOLDER else size


def _read_octal(field: bytes) -> int:
    """Return the number in a field, or -1."""
    text = field.strip(b"\0 ") or b"0"
    return int(text, 8) if not text.strip(b"01234567") else -1


def _read_decimal(text: str, offset: int, path: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise DataError(f"{path}, offset {offset}: expected the size of a member, found {text[:20]!r}: the archive is damaged")
    return int(text)


def _own_name(header: bytes, offset: int, path: str) -> str:
    name, prefix = header[:100].split(b"\0")[0], header[345:500].split(b"\0")[0]
    return _decode_name(prefix + b"/" + name if header[257:263] == b"ustar\0" and prefix else name, offset, path)


def _decode_name(name: bytes, offset: int, path: str) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, offset {offset}: expected a name in UTF-8, found {name[:40]!r}: rename the member") from error


def _check_name(name: str, offset: int, path: str) -> str:
    if not name or name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise DataError(
            f"{path}, offset {offset}: expected the name of a file in the archive's own folder, found {name!r}: make the archive "
            "again with relative names"
        )
    return posixpath.normpath(name)


def _read_notes(kind: bytes, content: bytes, offset: int, path: str) -> dict[str, str]:
    """Return what a long name or extended attributes say about the next member: maybe its path, maybe its size."""
    if len(content) > _LARGEST_NOTE:
        raise DataError(f"{path}, offset {offset}: expected a name or attributes of up to {_LARGEST_NOTE} bytes, found more")
    if kind == _LONG_NAME:
        return {"path": _decode_name(content.rstrip(b"\0"), offset, path)}
    found: dict[str, str] = {}
    while content:
        length, _, _ = content.partition(b" ")
        record = content[: int(length)] if length.isdigit() and len(length) < 6 else b""
        name, equals, value = record[len(length) + 1 : -1].partition(b"=")
        if not equals or record[-1:] != b"\n" or len(record) != int(length):
            raise DataError(
                f"{path}, offset {offset}: expected extended attributes, found {content[:20]!r}: the archive is damaged"
            )
        if kind == _EXTENDED and name in (b"path", b"size"):
            found[name.decode()] = _decode_name(value, offset, path)
        if name.startswith(b"GNU.sparse"):
            raise DataError(f"{path}, offset {offset}: expected plain files, found a sparse one: store the file itself")
        content = content[len(record) :]
    return found
