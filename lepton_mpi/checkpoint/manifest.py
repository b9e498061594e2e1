"""The manifest: the small JSON file, written last, that says a checkpoint is whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lepton_mpi.checkpoint.layout import DATA_FILE, FORMAT_MAJOR, FORMAT_MINOR, MANIFEST_FILE
from lepton_mpi.errors import CheckpointError

_FORMAT_NAME = "lepton_mpi checkpoint"
_READ_NBYTES = 2**20


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
    """

    step: int
    writer: str
    data_nbytes: int
    num_tensors: int
    num_extents: int
    frame: tuple[tuple[int, int], ...]
    frame_sha256: str

    def to_json(self) -> str:
        """Return the manifest as text that carries its own digest. Local."""
        body = {"format": _FORMAT_NAME, "format_major": FORMAT_MAJOR, "format_minor": FORMAT_MINOR, **asdict(self)}
        return json.dumps({**body, "sha256": _digest(body)}, indent=1) + "\n"


def read_manifest(checkpoint: Path) -> Manifest:
    """Read a checkpoint's manifest and compare it with itself and with the size of the data file. Local.

    Raises:
        CheckpointError: the manifest is missing, altered or of an unknown major version, or the
            data file is missing or has another size.
    """
    file = checkpoint / MANIFEST_FILE
    try:
        body: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        stated = body.pop("sha256")
        name, major = body.pop("format"), body.pop("format_major")
    except FileNotFoundError as error:
        raise CheckpointError(f"{checkpoint}: no {MANIFEST_FILE}, so this checkpoint was never completed; use another") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: not a manifest ({type(error).__name__}: {error}); use an older checkpoint") from error
    if name != _FORMAT_NAME or major != FORMAT_MAJOR:
        raise CheckpointError(
            f"{file}: format {name!r} version {major}, but this lepton_mpi reads {_FORMAT_NAME!r} version {FORMAT_MAJOR}; "
            "use the version that wrote it"
        )
    if stated != _digest({"format": name, "format_major": major, **body}):
        raise CheckpointError(f"{file}: altered since it was written (its SHA-256 does not match); use an older checkpoint")
    body.pop("format_minor")
    manifest = Manifest(**{**body, "frame": tuple((start, stop) for start, stop in body["frame"])})
    try:
        nbytes = (checkpoint / DATA_FILE).stat().st_size
    except OSError as error:
        raise CheckpointError(f"{checkpoint / DATA_FILE}: missing ({error}); use an older checkpoint") from error
    if nbytes != manifest.data_nbytes:
        raise CheckpointError(
            f"{checkpoint / DATA_FILE}: expected {manifest.data_nbytes} bytes, found {nbytes}; "
            "it was cut or changed, use an older checkpoint"
        )
    return manifest


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
        CheckpointError: the structure, the attributes or the digest tables changed.
    """
    if digest_ranges(checkpoint / DATA_FILE, manifest.frame) != manifest.frame_sha256:
        raise CheckpointError(
            f"{checkpoint / DATA_FILE}: its structure, attributes or digest tables changed since it was written; "
            "use an older checkpoint"
        )


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
