"""What a checkpoint holds, for people and programs that look at it from outside."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from lepton_mpi.checkpoint.commit import list_checkpoints
from lepton_mpi.checkpoint.hdf5 import AttributeValue
from lepton_mpi.checkpoint.layout import DATA_FILE, FORMAT_MAJOR, MANIFEST_FILE, TensorInfo
from lepton_mpi.checkpoint.manifest import Manifest
from lepton_mpi.checkpoint.reader import CheckpointReader
from lepton_mpi.errors import ConfigError


@final
@dataclass(frozen=True)
class Inspection:
    """What a checkpoint says of itself.

    Attributes:
        path: its folder.
        manifest: its manifest.
        attributes: its `/meta` attributes.
        tensors: shape and dtype of each tensor, sorted by path.
        disk_nbytes: bytes of its files.
    """

    path: Path
    manifest: Manifest
    attributes: dict[str, AttributeValue]
    tensors: dict[str, TensorInfo]
    disk_nbytes: int

    @property
    def version(self) -> str:
        """Format version, as "1.1"."""
        return f"{FORMAT_MAJOR}.{self.manifest.format_minor}"

    @property
    def tensor_nbytes(self) -> int:
        """Bytes of all tensors, the state without what surrounds it."""
        return sum(info.nbytes for info in self.tensors.values())

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as values for `format_json`. Local."""
        return {
            "checkpoint": str(self.path),
            "format": self.version,
            "writer": self.manifest.writer,
            "written_at": self.manifest.written_at,
            "host": self.manifest.host,
            "step": self.manifest.step,
            "attributes": {name: _plain(value) for name, value in self.attributes.items()},
            "num_tensors": len(self.tensors),
            "tensor_nbytes": self.tensor_nbytes,
            "disk_nbytes": self.disk_nbytes,
            "tensors": [
                {"path": path, "shape": list(info.shape), "dtype": str(info.dtype), "nbytes": info.nbytes}
                for path, info in self.tensors.items()
            ],
        }


def inspect_checkpoint(path: Path) -> Inspection:
    """Read what a checkpoint says of itself; the digests of its tensors are not compared.

    Local.

    Args:
        path: folder of a checkpoint.

    Raises:
        CheckpointError: its manifest or its structure are damaged.
    """
    with CheckpointReader(path) as reader:
        disk_nbytes = sum((path / name).stat().st_size for name in (DATA_FILE, MANIFEST_FILE))
        return Inspection(path, reader.manifest, dict(reader.attributes), dict(reader.tensors), disk_nbytes)


def find_checkpoints(path: Path) -> list[Path]:
    """Return the checkpoint that a folder is, or those in it, newest first.

    Local. Checkpoints without a manifest are listed too: they are damaged.

    Args:
        path: folder of a checkpoint, of a run's checkpoints, or of a run.

    Raises:
        ConfigError: it is none of these, or there is no checkpoint in it.
    """
    if not path.is_dir():
        raise ConfigError(f"{path}: no such folder: give the folder of a checkpoint, of a run's checkpoints, or of a run")
    if any((path / name).exists() or (path / name).is_symlink() for name in (MANIFEST_FILE, DATA_FILE)):
        return [path]
    found = list_checkpoints(path / "checkpoints" if (path / "checkpoints").is_dir() else path, damaged=True)
    if not found:
        raise ConfigError(
            f"{path}: neither a checkpoint nor a folder with one: give the folder of a checkpoint, or of a run that has some"
        )
    return found


def _plain(value: AttributeValue) -> Any:
    """Return an attribute for JSON: what is JSON text already is taken apart."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value
