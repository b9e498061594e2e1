"""Safetensors files: read slices of one, write one tensor by tensor."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.errors import CheckpointError
from lepton_mpi.interop.safetensors_header import HeaderError, make_header, read_header
from lepton_mpi.runtime.whole_file import WholeFile

# Of the dtypes of the format, those that weights come in. bfloat16 is the upper half of a float32.
_READABLE = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


class SafetensorsFile:
    """A safetensors file, mapped into memory: only the pages of what is read are loaded.

    Attributes:
        path: the file.
        shapes: shape of each tensor by name.
        metadata: strings that its writer left.
    """

    def __init__(self, path: Path) -> None:
        """Open a file and check its header. Local.

        Raises:
            CheckpointError: there is no such file, or it is damaged; says what is wrong.
        """
        self.path = path
        self._map: mmap.mmap | None = None
        try:
            with path.open("rb") as file:
                file_bytes = os.fstat(file.fileno()).st_size
                self._entries, metadata = read_header(file, file_bytes)
                self._map = mmap.mmap(file.fileno(), file_bytes, access=mmap.ACCESS_READ)
        except HeaderError as error:
            raise CheckpointError(f"{path} is not a sound safetensors file: {error}") from error
        except OSError as error:
            raise CheckpointError(f"{path}: cannot read the weights: {error.strerror or error}") from error
        self.shapes = MappingProxyType({name: entry.shape for name, entry in self._entries.items()})
        self.metadata = MappingProxyType(metadata)

    def require_readable(self, name: str) -> None:
        """Require that a tensor holds floating-point numbers. Local.

        Raises:
            CheckpointError: it holds others.
        """
        dtype = self._entries[name].dtype
        if dtype not in _READABLE:
            raise CheckpointError(f"{self.path}: tensor {name}: expected one of {', '.join(_READABLE)}, got {dtype}")

    def read(self, name: str, starts: Sequence[int], shape: Sequence[int]) -> NDArray[np.float32]:
        """Read a slice of a tensor. Local.

        Args:
            name: one of `shapes`.
            starts: where the slice begins in each dim.
            shape: its length in each dim.

        Returns:
            A new array of this shape.

        Raises:
            CheckpointError: the tensor is of a dtype that weights do not come in.
            ValueError: the slice is not inside the tensor.
        """
        self.require_readable(name)
        entry = self._entries[name]
        if not len(entry.shape) == len(starts) == len(shape) or any(
            start < 0 or count < 0 or start + count > size for start, count, size in zip(starts, shape, entry.shape, strict=True)
        ):
            raise ValueError(f"tensor {name} of shape {entry.shape} has no slice of shape {tuple(shape)} at {tuple(starts)}")
        if self._map is None:
            raise ValueError(f"{self.path} has been closed")
        dtype = np.dtype(_READABLE[entry.dtype])
        count = (entry.stop - entry.start) // dtype.itemsize
        if count == 0:
            return np.zeros(tuple(shape), np.float32)
        whole = np.frombuffer(self._map, dtype, count, entry.start).reshape(entry.shape)
        part = whole[tuple(slice(start, start + length) for start, length in zip(starts, shape, strict=True))]
        if entry.dtype != "BF16":
            return part.astype(np.float32, order="C")
        bits = part.astype(np.uint32, order="C")
        bits <<= 16
        return bits.view(np.float32)

    def close(self) -> None:
        """Give the mapping back. Local."""
        if self._map is not None:
            self._map.close()
            self._map = None


class SafetensorsWriter:
    """A safetensors file of float32 tensors that grows tensor by tensor and appears when it is whole.

    Use it as a context manager: an error inside leaves what was there before.
    """

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str] | None = None) -> None:
        """Begin a file. Local.

        Args:
            path: the file to appear; an old one is replaced.
            shapes: all tensors, in the order in which they will come.
            metadata: strings to keep with them, besides the format's own.

        Raises:
            OSError: the file cannot be written.
        """
        self._shapes = dict(shapes)
        self._waiting = list(self._shapes)
        self._draft = WholeFile(path)
        try:
            self._draft.file.write(make_header(self._shapes, {"format": "pt", **(metadata or {})}))
        except OSError:
            self._draft.close()
            raise

    def write(self, name: str, values: Any) -> None:
        """Write the next tensor. Local.

        Args:
            name: the first of those that have not come yet.
            values: float32, of the shape announced.

        Raises:
            OSError: the file cannot be written.
            ValueError: another tensor is due, or one of another shape.
        """
        due = self._waiting[0] if self._waiting else None
        if name != due or np.shape(values) != self._shapes[name]:
            raise ValueError(
                f"expected tensor {due} of shape {self._shapes.get(due or '')}, got {name} of shape {np.shape(values)}"
            )
        array = np.ascontiguousarray(values, "<f4")
        if array.size:
            self._draft.file.write(array.reshape(-1).view(np.uint8).data)
        del self._waiting[0]

    def __enter__(self) -> SafetensorsWriter:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Let the file appear, or remove all of it after an error."""
        with self._draft:
            if kind is None:
                if self._waiting:
                    raise ValueError(f"tensor {self._waiting[0]} has been announced but not written")
                self._draft.commit()
