"""Read a committed checkpoint, any block of any tensor, on any number of ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.checkpoint.hdf5 import AttributeValue, DataFile
from lepton_mpi.checkpoint.layout import DATA_FILE, FORMAT_MAJOR, TensorInfo
from lepton_mpi.checkpoint.manifest import Manifest, check_frame, read_manifest
from lepton_mpi.errors import CheckpointError


@final
class CheckpointReader:
    """A checkpoint open for reading. Local, serial HDF5; a context manager.

    Opening checks the manifest, the size, the digest of all that is not tensor elements before HDF5 parses any of it, and the
    structure; not the elements, that is `verify_checkpoint`.

    Args:
        path: directory of the checkpoint.

    Attributes:
        path: that directory.

    Raises:
        CheckpointError: it is incomplete, damaged, of an unknown major version, or has a structure that could do harm.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._manifest = read_manifest(path)
        check_frame(path, self._manifest)
        self._data = DataFile(path / DATA_FILE)
        found = (self.attributes.get("format_major"), self.attributes.get("step"), len(self.tensors))
        expected = (FORMAT_MAJOR, self._manifest.step, self._manifest.num_tensors)
        if found != expected:
            self.close()
            raise CheckpointError(
                f"{path}: the manifest says format, step and number of tensors are {expected}, the data file says {found}; "
                "it belongs to another checkpoint"
            )

    @property
    def attributes(self) -> Mapping[str, AttributeValue]:
        """The `/meta` attributes: format version, writer, step and what the run added."""
        return self._data.attributes

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Global shape and dtype of each tensor, sorted by path."""
        return self._data.tensors

    @property
    def manifest(self) -> Manifest:
        """What the checkpoint consists of, and who wrote it."""
        return self._manifest

    @property
    def step(self) -> int:
        """Global step at which it was written."""
        return self._manifest.step

    def require(self, expected: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> None:
        """Refuse to go on unless the checkpoint holds exactly these tensors.

        Args:
            expected: path to global shape and dtype.

        Raises:
            CheckpointError: names the first tensor, by path, that differs.
        """
        # Optimizer state last: a parameter that differs tells more.
        for path in sorted(expected.keys() | self.tensors.keys(), key=lambda path: (path.startswith("/opt/"), path)):
            found, wanted = self.tensors.get(path), expected.get(path)
            if found is None or wanted is None or tuple(wanted[0]) != found.shape or wanted[1] != found.dtype:
                raise CheckpointError(
                    f"{self._data.file}: tensor {path}: the model has {_describe(wanted)}, the checkpoint {_describe(found)}; "
                    "resume with the configuration that wrote it, or use another run folder"
                )

    def read(self, path: str, starts: Sequence[int], shape: Sequence[int], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Read one block of a tensor; see `DataFile.read`."""
        return self._data.read(path, starts, shape, out)

    def offset(self, path: str) -> int:
        """Return where the elements of a tensor begin in the data file; see `DataFile.offset`."""
        return self._data.offset(path)

    def close(self) -> None:
        """Close the file."""
        self._data.close()

    def __enter__(self) -> CheckpointReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


def _describe(info: tuple[tuple[int, ...], np.dtype[Any]] | None) -> str:
    return "no such tensor" if info is None else f"shape {tuple(info[0])} of {np.dtype(info[1])}"
