"""Where named tensors come from: one safetensors file, or a folder of them as model repositories have it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.errors import CheckpointError
from lepton_mpi.interop.safetensors_file import SafetensorsFile

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"


class WeightsSource:
    """Tensors by name, spread over one or more files; a file is opened when something of it is asked for.

    Attributes:
        path: what was opened, for messages.
        folder: where the files lie.
        names: names of all tensors.
    """

    def __init__(self, path: Path, folder: Path, file_of: Mapping[str, Path], opened: Sequence[SafetensorsFile] = ()) -> None:
        """Make a source of files. Local.

        Args:
            path: for messages.
            folder: where the files lie.
            file_of: the file of each tensor.
            opened: those of the files that are open already; they are closed with the source.
        """
        self.path = path
        self.folder = folder
        self._file_of = dict(file_of)
        self.names = tuple(self._file_of)
        self._opened = {file.path: file for file in opened}

    def __contains__(self, name: str) -> bool:
        """Return whether there is a tensor of this name."""
        return name in self._file_of

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor. Local.

        Raises:
            CheckpointError: its file is missing or damaged, or does not hold it.
        """
        return self._file(name).shapes[name]

    def require_readable(self, name: str) -> None:
        """Require that a tensor holds floating-point numbers. Local.

        Raises:
            CheckpointError: it holds others, or its file is missing or damaged.
        """
        self._file(name).require_readable(name)

    def read(self, name: str, starts: Sequence[int], shape: Sequence[int]) -> NDArray[np.float32]:
        """Read a slice of a tensor as float32; see `SafetensorsFile.read`. Local."""
        return self._file(name).read(name, starts, shape)

    def config(self) -> dict[str, Any] | None:
        """Return the config.json that lies beside the weights; None where there is none. Local.

        Raises:
            CheckpointError: it is not a JSON object.
        """
        path = self.folder / CONFIG_FILE
        return _read_json(path) if path.is_file() else None

    def close(self) -> None:
        """Close all files. Local."""
        for file in self._opened.values():
            file.close()
        self._opened.clear()

    def __enter__(self) -> WeightsSource:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close all files."""
        self.close()

    def _file(self, name: str) -> SafetensorsFile:
        path = self._file_of[name]
        if path not in self._opened:
            file = SafetensorsFile(path)
            absent = next((other for other, where in self._file_of.items() if where == path and other not in file.shapes), None)
            if absent is not None:
                file.close()
                raise CheckpointError(f"{self.path}: names {path.name} as the file of tensor {absent}, which does not hold it")
            self._opened[path] = file
        return self._opened[path]


def open_weights(path: Path | str) -> WeightsSource:
    """Open weights to read from. Local.

    Args:
        path: a .safetensors file; a model.safetensors.index.json; or a folder with either. In a folder with both,
            model.safetensors is the one, as in transformers.

    Raises:
        CheckpointError: there is nothing of that kind, or the index or the file is damaged.
    """
    path = Path(path)
    chosen = path
    if path.is_dir():
        chosen = next((path / name for name in (SINGLE_FILE, INDEX_FILE) if (path / name).is_file()), path)
        if chosen == path:
            raise CheckpointError(f"{path}: expected a folder with {SINGLE_FILE} or {INDEX_FILE}, found neither")
    if not chosen.is_file():
        raise CheckpointError(f"{path}: expected a file or folder of safetensors weights, there is none")
    if chosen.suffix == ".json":
        return WeightsSource(chosen, chosen.parent, _read_index(chosen))
    file = SafetensorsFile(chosen)
    return WeightsSource(chosen, chosen.parent, dict.fromkeys(file.shapes, chosen), [file])


def _read_index(path: Path) -> dict[str, Path]:
    weight_map = _read_json(path).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{path}: expected weight_map to give a file for each tensor, got {weight_map!r:.80}")
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or file in ("", ".", "..") or "/" in file or "\\" in file or "\0" in file:
            raise CheckpointError(f"{path}: tensor {tensor}: expected the name of a file in the same folder, got {file!r:.80}")
    return {tensor: path.parent / file for tensor, file in weight_map.items()}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot read it as JSON: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {found!r:.80}")
    return found
