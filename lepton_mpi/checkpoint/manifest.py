"""The manifest: the small JSON file, written last, that says a checkpoint is whole."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lepton_mpi.checkpoint.layout import DATA_FILE, FORMAT_MAJOR, FORMAT_MINOR, MANIFEST_FILE, STEP_FOLDER
from lepton_mpi.errors import CheckpointError, FormatVersionError

_FORMAT_NAME = "lepton_mpi checkpoint"
_READ_NBYTES = 2**20
_MAX_MANIFEST_NBYTES = 2**28  # some 10 million tensors


@dataclass(frozen=True)
class Manifest:
    """What a whole checkpoint consists of.

    Attributes:
        step: global step.
        writer: version of lepton_mpi that wrote it.
        data_nbytes: size of the data file.
        num_tensors: logical tensors in it.
        num_extents: extents whose CRC-32 the data file lists.
        frame: the byte ranges of the data file outside the tensors' elements: all of HDF5's
            structure, the attributes and the table of digests.
        frame_sha256: SHA-256 of the bytes in those ranges, one after the other.
        written_at: when, as 2026-01-31T23:59:59Z; empty in format 1.0, which did not say.
        host: name of rank 0's node; empty in format 1.0.
        format_minor: minor version of the format.
    """

    step: int
    writer: str
    data_nbytes: int
    num_tensors: int
    num_extents: int
    frame: tuple[tuple[int, int], ...]
    frame_sha256: str
    written_at: str = ""
    host: str = ""
    format_minor: int = FORMAT_MINOR

    def to_json(self) -> str:
        """Return the manifest as text that carries its own digest. Local."""
        body = {"format": _FORMAT_NAME, "format_major": FORMAT_MAJOR, **asdict(self)}
        return _format({**body, "sha256": _digest(body)})


def read_manifest(checkpoint: Path) -> Manifest:
    """Read a checkpoint's manifest and compare it with itself and with the size of the data file. Local.

    Raises:
        FormatVersionError: the manifest is whole, and of another major version.
        CheckpointError: the manifest is missing, altered, of an unknown major version or of another step than the
            folder's name says, or the data file is missing, has another size or is no regular file.
    """
    file = checkpoint / MANIFEST_FILE
    try:
        _check_regular(file, _MAX_MANIFEST_NBYTES)
        text = file.read_bytes().decode()
        body: dict[str, Any] = json.loads(text)
        stated = body.pop("sha256")
        name, major = body.pop("format"), body.pop("format_major")
    except FileNotFoundError as error:
        raise CheckpointError(f"{checkpoint}: no {MANIFEST_FILE}, so this checkpoint was never completed; use another") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file}: not a manifest ({type(error).__name__}: {error}); use an older checkpoint") from error
    if name != _FORMAT_NAME or major != FORMAT_MAJOR:
        told = {"format": name, "format_major": major, **body}
        is_whole = name == _FORMAT_NAME and type(major) is int and stated == _digest(told)
        raise (FormatVersionError if is_whole else CheckpointError)(
            f"{file}: format {name!r} version {major}, but this lepton_mpi reads {_FORMAT_NAME!r} version {FORMAT_MAJOR}; "
            "use the version that wrote it"
        )
    whole = {"format": name, "format_major": major, **body}
    # The text too: else blanks could come or go unseen.
    if stated != _digest(whole) or text != _format({**whole, "sha256": stated}):
        raise CheckpointError(f"{file}: altered since it was written (its SHA-256 does not match); use an older checkpoint")
    manifest = _parse(file, body)
    named = STEP_FOLDER.fullmatch(checkpoint.name)
    if named and int(named[1]) != manifest.step:
        raise CheckpointError(
            f"{checkpoint}: its manifest is of step {manifest.step}, so the folder was renamed or the manifest comes from another "
            "one; use an older checkpoint"
        )
    try:
        nbytes = _check_regular(checkpoint / DATA_FILE)
    except OSError as error:
        raise CheckpointError(f"{checkpoint / DATA_FILE}: missing ({error}); use an older checkpoint") from error
    if nbytes != manifest.data_nbytes:
        raise CheckpointError(
            f"{checkpoint / DATA_FILE}: expected {manifest.data_nbytes} bytes, found {nbytes}; "
            "it was cut or changed, use an older checkpoint"
        )
    return manifest


def _parse(file: Path, body: dict[str, Any]) -> Manifest:
    """Return a manifest whose digest was compared; what a newer minor version added is left out."""
    known = {field.name for field in fields(Manifest)}
    try:
        frame = tuple((int(start), int(stop)) for start, stop in body["frame"])
        if not all(0 <= start <= stop <= body["data_nbytes"] for start, stop in frame):
            raise ValueError("a range of bytes outside the data file")
        return Manifest(**{name: value for name, value in body.items() if name in known} | {"frame": frame})
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{file}: not a manifest of a checkpoint ({error}); use an older checkpoint") from error


def _check_regular(file: Path, max_nbytes: int | None = None) -> int:
    """Return the size of a file; refuse links, which lead elsewhere, and what would block or never end.

    Raises:
        OSError: it is missing, or none of that.
    """
    status = file.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"expected a regular file, found {'a link' if stat.S_ISLNK(status.st_mode) else 'something else'}")
    if max_nbytes is not None and status.st_size > max_nbytes:
        raise OSError(f"expected at most {max_nbytes} bytes, found {status.st_size}")
    return status.st_size


def frame_ranges(data_nbytes: int, tensors: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return the ranges of the data file that hold no tensor elements.

    Local.

    Args:
        data_nbytes: size of the file.
        tensors: `(offset, nbytes)` of each tensor.
    """
    ranges, position = [], 0
    for offset, nbytes in [*sorted(tensors), (data_nbytes, 0)]:
        if offset > position:
            ranges.append((position, offset))
        position = max(position, offset + nbytes)
    return tuple(ranges)


def digest_ranges(file: Path, ranges: Sequence[tuple[int, int]]) -> str:
    """Return the SHA-256 of the bytes of some ranges of a file, in order. Local."""
    sha256 = hashlib.sha256()
    descriptor = os.open(file, os.O_RDONLY)
    try:
        for start, stop in ranges:
            while start < stop:
                piece = os.pread(descriptor, min(stop - start, _READ_NBYTES), start)
                if not piece:
                    raise CheckpointError(f"{file}: ends at byte {start}, expected {stop}; use an older checkpoint")
                sha256.update(piece)
                start += len(piece)
    finally:
        os.close(descriptor)
    return sha256.hexdigest()


def check_frame(checkpoint: Path, manifest: Manifest) -> None:
    """Compare everything in the data file but the tensors' elements with the manifest, before HDF5 parses any of it. Local.

    Raises:
        CheckpointError: the structure, the attributes or the digest tables changed, or cannot be read.
    """
    try:
        found = digest_ranges(checkpoint / DATA_FILE, manifest.frame)
    except OSError as error:
        raise CheckpointError(f"{checkpoint / DATA_FILE}: cannot be read ({error}); use an older checkpoint") from error
    if found != manifest.frame_sha256:
        raise CheckpointError(
            f"{checkpoint / DATA_FILE}: its structure, attributes or digest tables changed since it was written; "
            "use an older checkpoint"
        )


def _format(body: dict[str, Any]) -> str:
    return json.dumps(body, indent=1) + "\n"


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
