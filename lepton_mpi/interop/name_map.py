"""How our parameters are called and laid out elsewhere: to start from such weights, and to write them."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.comm.contract import collective
from lepton_mpi.errors import CheckpointError
from lepton_mpi.interop.safetensors_file import SafetensorsWriter
from lepton_mpi.interop.weights_source import CONFIG_FILE, SINGLE_FILE, WeightsSource
from lepton_mpi.nn.parameter import ParameterBlock, ParameterSpec
from lepton_mpi.runtime.whole_file import WholeFile

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Entry:
    """Where one parameter lies in a tensor of theirs.

    Attributes:
        spec: our parameter.
        theirs: name of their tensor.
        transposed: whether theirs is [inputs, outputs].
        part: several parameters may lie one after the other along our first dim of their tensor; this is the number of this one.
        aliases: other names that files are found to have for it.
        optional: whether a file may lack it, such as a classifier that is trained anew.
    """

    spec: ParameterSpec
    theirs: str
    transposed: bool = False
    part: int = 0
    aliases: tuple[str, ...] = ()
    optional: bool = False


@dataclass(frozen=True)
class NameMap:
    """The names of a model's parameters in files of some origin.

    Attributes:
        entries: one for each parameter, in the order of the layers.
        ignored: patterns of tensors that files may hold besides.
        model_type: what config.json calls the architecture; empty where there is no such file.
        decisive: values that a config.json must have, where it has the key at all, for the weights to mean the same; a
            tuple admits any of its elements, a dot leads into a dict.
        config: what to write as config.json.
    """

    entries: tuple[Entry, ...]
    ignored: tuple[str, ...] = ()
    model_type: str = ""
    decisive: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def groups(self) -> dict[str, tuple[Entry, ...]]:
        """The parameters that make up each tensor of theirs, in order."""
        found: dict[str, list[Entry]] = {}
        for entry in self.entries:
            found.setdefault(entry.theirs, []).append(entry)
        return {name: tuple(sorted(group, key=lambda entry: entry.part)) for name, group in found.items()}

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of their tensors."""
        found = {}
        for name, group in self.groups.items():
            shape = (sum(entry.spec.shape[0] for entry in group), *group[0].spec.shape[1:])
            found[name] = shape[::-1] if group[0].transposed else shape
        return found

    def require_fit(self, source: WeightsSource) -> tuple[str, ...]:
        """Require that a source holds the weights of this model and of no larger one. Local.

        Returns:
            Names of our optional parameters that it does not hold, which keep their initial values.

        Raises:
            CheckpointError: names the first tensor, in the order of our layers, that is missing, of another shape or
                not of numbers; or one that belongs to nothing here; or what config.json says differently.
        """
        self._require_config(source)
        absent: list[str] = []
        used: set[str] = set()
        for entry in self.entries:
            name = _found(source, entry)
            if name is None and not entry.optional:
                raise CheckpointError(
                    f"{source.path}: tensor {entry.theirs} of shape {self.shapes[entry.theirs]}, for the parameter "
                    f"{entry.spec.name}, is missing; check model.family, model.num_layers and model.tied"
                )
            if name is None:
                absent.append(entry.spec.name)
                continue
            expected, found = self.shapes[entry.theirs], source.shape(name)
            if found != expected:
                raise CheckpointError(
                    f"{source.path}: tensor {name}: expected shape {expected}, found {found}; check the sizes in [model]"
                )
            source.require_readable(name)
            used.update((entry.theirs, *entry.aliases))
        for name in source.names:
            if name not in used and not any(re.fullmatch(pattern, name) for pattern in self.ignored):
                raise CheckpointError(
                    f"{source.path}: tensor {name} belongs to no parameter of the model; check model.num_layers and model.tied"
                )
        return tuple(absent)

    def read_block(self, source: WeightsSource, block: ParameterBlock, rows: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """Read the values of a block, and no others. Local.

        Args:
            source: fits, as `require_fit` found, and holds the parameter.
            block: which part of the parameter.
            rows: only this range (first, last) of the block's first dim.

        Returns:
            A new array of the shape of the block, or of its rows.

        Raises:
            CheckpointError: the file does not hold the parameter.
        """
        entry = self._entry[block.name]
        name = _found(source, entry)
        if name is None:
            raise CheckpointError(f"{source.path}: tensor {entry.theirs} for the parameter {block.name} is missing")
        first, last = rows or (0, block.shape[0])
        before = sum(other.spec.shape[0] for other in self.groups[entry.theirs][: self.groups[entry.theirs].index(entry)])
        starts = (before + block.starts[0] + first, *block.starts[1:])
        shape = (last - first, *block.shape[1:])
        if not entry.transposed:
            return source.read(name, starts, shape)
        return np.ascontiguousarray(source.read(name, starts[::-1], shape[::-1]).T)

    @collective("the communicator of gather")
    def export(self, gather: Callable[[str], NDArray[np.float32] | None], path: Path) -> None:
        """Write the weights under their names, on the one rank that gets them.

        Collective over the communicator of gather. All parameters are gathered, one after the other, in the same order on all
        ranks, even after an error of the file.

        Args:
            gather: returns a whole parameter, float32, on one rank, always the same, and None on the others.
            path: a file `*.safetensors`; or a folder, which gets a config.json too where the model has one.

        Raises:
            CheckpointError: on that rank alone, after all is gathered: the files cannot be written.
        """
        arrays = (gather(entry.spec.name) for group in self.groups.values() for entry in group)
        first = next(arrays, None)
        if first is None:
            for _ in arrays:
                pass
            return
        try:
            self._write(itertools.chain((first,), arrays), path)
        except OSError as error:
            for _ in arrays:
                pass
            raise CheckpointError(f"{path}: cannot write the weights: {error.strerror or error}") from error

    @cached_property
    def _entry(self) -> dict[str, Entry]:
        return {entry.spec.name: entry for entry in self.entries}

    def _write(self, arrays: Iterator[NDArray[np.float32] | None], path: Path) -> None:
        folder = None if path.suffix == SUFFIX else path
        (folder or path.parent).mkdir(parents=True, exist_ok=True)
        with SafetensorsWriter(folder / SINGLE_FILE if folder else path, self.shapes) as writer:
            for name, group in self.groups.items():
                parts = [np.asarray(part) for part in itertools.islice(arrays, len(group))]
                whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
                writer.write(name, whole.T if group[0].transposed else whole)
        if folder and self.config:
            with WholeFile(folder / CONFIG_FILE) as described:
                described.file.write((json.dumps(self.config, indent=2) + "\n").encode())
                described.commit()

    def _require_config(self, source: WeightsSource) -> None:
        """Compare what the weights do not show, such as the number of heads, with their config.json."""
        config = source.config() if self.model_type else None
        if config is None or "model_type" not in config:  # none, or another program's
            return
        for key, expected in {"model_type": self.model_type, **self.decisive}.items():
            found: Any = config
            for step in key.split("."):
                found = found.get(step, _ABSENT) if isinstance(found, dict) else _ABSENT
            if found is not _ABSENT and found not in (expected if isinstance(expected, tuple) else (expected,)):
                raise CheckpointError(
                    f"{source.folder / CONFIG_FILE}: says {key} = {found!r}, this model has {expected!r}; check the keys in [model]"
                )


_ABSENT = object()


def _found(source: WeightsSource, entry: Entry) -> str | None:
    return next((name for name in (entry.theirs, *entry.aliases) if name in source), None)


def translate(name: str, outer: Mapping[str, str], block: Mapping[str, str], block_name: str) -> str:
    """Return their name of one of our parameters. Local.

    Args:
        name: ours, `<layer>.<what>`, with layers `blocks.<number>.<part>` or others.
        outer: their name of each layer that is not in a block.
        block: their name of each part of a block.
        block_name: what stands before the number in their names of blocks.
    """
    layer, _, what = name.rpartition(".")
    inside = re.fullmatch(r"blocks\.(\d+)\.(.+)", layer)
    return f"{block_name}.{inside[1]}.{block[inside[2]]}.{what}" if inside else f"{outer[layer]}.{what}"
