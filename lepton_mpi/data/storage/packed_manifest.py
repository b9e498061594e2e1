"""The manifest of converted data: what it holds, of which size, with which digests; docs/data_format.md has every key."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass
from typing import Any, cast, final, get_args

import numpy as np

from lepton_mpi.data.storage.piece_digests import PIECE_NBYTES, combine_digests
from lepton_mpi.errors import DataError
from lepton_mpi.models.task import LabelKind

MANIFEST_FILE = "manifest.json"
FORMAT_NAME = "lepton_mpi packed data"
FORMAT_VERSION = 1
LAYOUTS = ("rows", "tokens")  # what a row of the inputs is: a sample, or one token of a text that readers cut into windows
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_REAL_DTYPE = re.compile(r"[<>|][biuf](1|2|4|8)", re.ASCII)


@final
@dataclass(frozen=True)
class PackedArray:
    """One array of converted data.

    Attributes:
        name: file in the folder, or dataset in the HDF5 file.
        shape: dims of the array.
        dtype: NumPy's name of the type, with the byte order.
        nbytes: size of the file, or of the dataset's elements.
        sha256: digest of the digests of its pieces.
        pieces: digest of each piece.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    sha256: str
    pieces: tuple[str, ...]


@final
@dataclass(frozen=True)
class PackedManifest:
    """What converted data consists of.

    Attributes:
        writer: version of lepton_mpi that wrote it.
        source_name: what messages call the data that was converted.
        source_format: its `data.format`.
        split: which part of it: all, train, validation or test.
        layout: "rows", or "tokens" for text.
        num_samples: rows of the inputs.
        label_kind: what the labels are.
        num_classes: number of classes; 0 unless labels are classes.
        class_names: names of the classes, where the source has them.
        inputs: the inputs.
        labels: the labels; None: the samples have none, or text, where they are the next tokens.
        piece_nbytes: size of the pieces of which digests are kept.
    """

    writer: str
    source_name: str
    source_format: str
    split: str
    layout: str
    num_samples: int
    label_kind: LabelKind
    num_classes: int
    class_names: tuple[str, ...]
    inputs: PackedArray
    labels: PackedArray | None
    piece_nbytes: int = PIECE_NBYTES

    @property
    def arrays(self) -> tuple[PackedArray, ...]:
        """The arrays that there are."""
        return (self.inputs,) if self.labels is None else (self.inputs, self.labels)

    def to_json(self) -> str:
        """Return the manifest as text that carries its own digest. Local."""
        body = {"format": FORMAT_NAME, "version": FORMAT_VERSION, **asdict(self)}
        return json.dumps({**body, "sha256": digest_body(body)}, indent=1) + "\n"


def parse_manifest(text: str | bytes, place: str) -> PackedManifest:
    """Read a manifest and hold it against itself. Local.

    Args:
        text: the JSON, in UTF-8.
        place: where it comes from, for messages.

    Raises:
        DataError: it is no JSON object, of another format or version, lacks a key, was altered, or makes no sense.
    """
    try:
        body = json.loads(text)
    except ValueError as error:  # JSON and UTF-8
        offset = getattr(error, "pos", getattr(error, "start", 0))
        raise DataError(f"{place}, offset {offset}: expected JSON: {error}: convert the data again") from error
    except RecursionError as error:
        raise DataError(f"{place}: expected JSON of a manifest, found deeply nested brackets: convert the data again") from error
    if not isinstance(body, dict) or body.get("format") != FORMAT_NAME:
        raise DataError(f"{place}: expected a manifest of {FORMAT_NAME!r}, found something else: give a folder that convert made")
    if body.get("version") != FORMAT_VERSION:
        raise DataError(
            f"{place}: expected version {FORMAT_VERSION}, found {body.get('version')!r}: convert the data again, or use the "
            "lepton_mpi that wrote it"
        )
    stated = body.pop("sha256", None)
    keys = set(PackedManifest.__dataclass_fields__)
    missing = sorted(keys - set(body)) + ([] if stated is not None else ["sha256"])
    if missing:
        raise DataError(f"{place}: expected the key {missing[0]!r}, found none: convert the data again")
    if stated != digest_body(body):
        raise DataError(f"{place}: altered since it was written (its SHA-256 does not match): convert the data again")
    try:
        arrays = {key: None if body[key] is None else _read_array(body[key]) for key in ("inputs", "labels")}
        fields = {key: body[key] for key in keys} | arrays | {"class_names": tuple(body["class_names"])}
        manifest = PackedManifest(**cast(Any, fields))
        wrong = _find_mistake(manifest)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{place}: not a manifest ({type(error).__name__}: {error}): convert the data again") from error
    if wrong:
        raise DataError(f"{place}: {wrong}: convert the data again")
    return manifest


def _read_array(found: dict[str, Any]) -> PackedArray:
    return PackedArray(**{**found, "shape": tuple(found["shape"]), "pieces": tuple(found["pieces"])})


def _find_mistake(m: PackedManifest) -> str:
    """Return what a manifest states that cannot be; empty: nothing."""
    if m.layout not in LAYOUTS:
        return f"expected a layout of {' or '.join(LAYOUTS)}, found {m.layout!r}"
    if m.label_kind not in get_args(LabelKind):
        return f"expected a label kind of {', '.join(get_args(LabelKind))}, found {m.label_kind!r}"
    if not _are_sizes(m.num_samples, m.num_classes, m.piece_nbytes) or m.piece_nbytes == 0:
        return "expected num_samples, num_classes and piece_nbytes of at least 0, and pieces of some bytes"
    if m.layout == "tokens" and (m.labels is not None or len(m.inputs.shape) != 1 or m.inputs.dtype[1] != "u"):
        return f"expected one row of unsigned tokens without labels, found {m.inputs.shape} of {m.inputs.dtype}"
    if m.layout == "rows" and (m.labels is None) != (m.label_kind == "none"):
        return f"expected labels where their kind is not none, found kind {m.label_kind!r}"
    for array in m.arrays:
        if not isinstance(array.name, str) or array.name in ("", ".", "..") or "/" in array.name or "\0" in array.name:
            return f"expected the name of a file in the folder, found {array.name!r}"
        if not isinstance(array.dtype, str) or not _REAL_DTYPE.fullmatch(array.dtype):
            return f"{array.name}: expected a type of real numbers, found {array.dtype!r}"
        if not _are_sizes(*array.shape, array.nbytes) or array.shape[:1] != (m.num_samples,) or 0 in array.shape:
            return f"{array.name}: expected {m.num_samples} rows and no dim of 0, found the shape {array.shape}"
        if array.nbytes < math.prod(array.shape) * np.dtype(array.dtype).itemsize:
            return f"{array.name}: expected at least the bytes of {array.shape} of {array.dtype}, found {array.nbytes}"
        if len(array.pieces) != -(-array.nbytes // m.piece_nbytes) or not all(map(_SHA256.fullmatch, array.pieces)):
            return f"{array.name}: expected a SHA-256 for each of {-(-array.nbytes // m.piece_nbytes)} pieces, found other"
        if combine_digests(array.pieces) != array.sha256:
            return f"{array.name}: expected a SHA-256 that follows from those of its pieces, found {array.sha256!r}"
    return ""


def _are_sizes(*values: object) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) and value >= 0 for value in values)


def digest_body(body: dict[str, Any]) -> str:
    """Return the SHA-256 of a manifest without its own digest: of the JSON with sorted keys and no white space. Local."""
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
