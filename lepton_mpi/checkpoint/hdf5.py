"""The data file: created with every byte allocated, read only after its structure was found harmless."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, final

import h5py
import numpy as np
from h5py import h5a, h5d, h5p, h5s, h5t
from numpy.typing import NDArray

from lepton_mpi.checkpoint.layout import (
    EXTENT_TABLE,
    META_GROUP,
    TENSOR_DTYPES,
    TENSOR_INDEX,
    TensorInfo,
    block_fits,
    describe_block,
)
from lepton_mpi.checkpoint.storage import DEFAULT_STORAGE, Storage, alignment_interval, make_empty
from lepton_mpi.errors import CheckpointError

AttributeValue = str | int | float


def create_data_file(
    file: Path,
    tensors: Mapping[str, TensorInfo],
    attributes: Mapping[str, AttributeValue],
    table: NDArray[np.void],
    storage: Storage = DEFAULT_STORAGE,
) -> dict[str, int]:
    """Create the file with its attributes, integrity tables and unwritten, fully allocated tensors.

    Local, with the serial driver: whatever writes the tensors afterwards, the file's structure is the same.

    Args:
        file: where; must not exist.
        tensors: global shapes and dtypes, sorted by path.
        attributes: `/meta` attributes.
        table: all extents (`plan.table_dtype`).
        storage: hints and alignment.

    Returns:
        The byte offset in the file of each tensor that has elements, and of the table under `EXTENT_TABLE` where it has rows.

    Raises:
        CheckpointError: an attribute cannot be stored.
        OSError: the file cannot be created.
    """
    interval = alignment_interval(file.parent, storage)
    make_empty(file, storage)
    with h5py.File(
        file,
        "w",  # the file just made, which keeps its stripes
        libver=("v110", "v110"),
        locking=False,
        alignment_threshold=4 * interval,
        alignment_interval=interval,
    ) as data:
        meta = data.create_group(META_GROUP)
        for name, value in attributes.items():
            write_attribute(meta, name, value)
        paths = np.array([path.encode() for path in tensors], dtype=f"S{max(map(len, tensors), default=1)}")
        for path, array in ((TENSOR_INDEX, paths), (EXTENT_TABLE, table)):
            dataset = _allocate(data, path, array.shape, array.dtype)
            if array.size:
                dataset.write(h5s.ALL, h5s.ALL, array)
        datasets = {path: _allocate(data, path, info.shape, info.dtype) for path, info in tensors.items()}
        offsets = {path: datasets[path].get_offset() for path, info in tensors.items() if info.nbytes}
        return {**offsets, EXTENT_TABLE: data[EXTENT_TABLE].id.get_offset()} if table.size else offsets


def select_block(dataset: h5d.DatasetID, starts: Sequence[int], shape: Sequence[int]) -> h5s.SpaceID:
    """Return the file dataspace with the block selected. Local."""
    space = dataset.get_space()
    if len(shape):
        space.select_hyperslab(tuple(starts), tuple(shape))
    else:
        space.select_all()
    return space


def encode_attribute(name: str, value: AttributeValue) -> NDArray[Any]:
    """Return an attribute as the scalar that a file holds; text as fixed-length UTF-8. Local.

    Raises:
        CheckpointError: it cannot be stored.
    """
    if isinstance(value, str) and "\0" not in value:
        encoded = value.encode()
        return np.array(encoded, h5py.string_dtype("utf-8", max(1, len(encoded))))
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return np.array(int(value), np.int64)
    if isinstance(value, float):
        return np.array(value, np.float64)
    raise CheckpointError(
        f"attribute {name!r}: {value!r} of type {type(value).__name__} cannot be stored; expected str, 64-bit int or float"
    )


def write_attribute(meta: h5py.Group, name: str, value: AttributeValue) -> None:
    """Write a scalar attribute; one that is there must be of the same type and length. Local.

    Raises:
        CheckpointError: it cannot be stored.
    """
    array = encode_attribute(name, value)
    if name in meta.attrs:
        h5a.open(meta.id, name.encode()).write(array)
    else:
        meta.attrs.create(name, array, dtype=array.dtype)


def _allocate(data: h5py.File, path: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> h5d.DatasetID:
    """Create a contiguous dataset whose bytes exist in the file at once and are written by nobody but us."""
    creation = h5p.create(h5p.DATASET_CREATE)
    creation.set_layout(h5d.CONTIGUOUS)
    creation.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5d.FILL_TIME_NEVER)
    creation.set_obj_track_times(False)
    links = h5p.create(h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    space = h5s.create_simple(shape) if shape else h5s.create(h5s.SCALAR)
    return h5d.create(data.id, path.encode(), h5t.py_create(dtype), space, dcpl=creation, lcpl=links)


@final
class DataFile:
    """The data file of a checkpoint, open for reading. Local; a context manager.

    Opening walks all links and datasets and refuses whatever `create_data_file` would not have
    made, above all what could make HDF5 read other files (CVE-2026-1669) or allocate at will.

    Attributes:
        file: its path.
        tensors: global shape and dtype of each logical tensor, sorted by path.
        attributes: the `/meta` attributes.

    Raises:
        CheckpointError: the file is no HDF5 file or has a structure that a checkpoint never has.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._nbytes = file.stat().st_size
        try:
            self._data = h5py.File(file, "r", locking=False)
        except OSError as error:
            raise CheckpointError(f"{file}: not a readable HDF5 file ({error}); use an older checkpoint") from error
        try:
            self._datasets = dict(self._walk(self._data["/"], {self._data["/"]}))
            self.tensors = {
                path: TensorInfo(dataset.shape, dataset.dtype)
                for path, dataset in sorted(self._datasets.items())
                if path not in (TENSOR_INDEX, EXTENT_TABLE)
            }
            for path, info in self.tensors.items():
                if info.dtype not in TENSOR_DTYPES:
                    raise self._refusal(path, f"dtype {info.dtype} is not one of a checkpoint's")
            self.attributes = self._read_attributes()
        except (CheckpointError, OSError, RuntimeError, TypeError, ValueError, KeyError) as error:
            self.close()
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{file}: damaged HDF5 structure ({error}); use an older checkpoint") from error

    def __enter__(self) -> DataFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._data.close()

    def read(self, path: str, starts: Sequence[int], shape: Sequence[int], out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Read one block of a tensor, and nothing else from the disk.

        Args:
            path: the tensor.
            starts: where the block begins, one index a dim.
            shape: its lengths.
            out: where to put it, of this shape and the tensor's dtype; None: a new array.

        Returns:
            `out`, or the new C-contiguous array.

        Raises:
            CheckpointError: there is no such tensor or block, `out` does not fit, or reading fails.
        """
        starts, shape = tuple(starts), tuple(shape)
        info = self.tensors.get(path)
        if info is None:
            raise CheckpointError(f"{self.file}: no tensor {path}; it holds {len(self.tensors)} others")
        if not block_fits(starts, shape, info.shape):
            raise CheckpointError(f"{self.file}: tensor {path} of shape {info.shape} has no block of shape {shape} at {starts}")
        if out is not None and (out.shape != shape or out.dtype != info.dtype):
            raise CheckpointError(
                f"{self.file}: tensor {path}: expected an array of shape {shape} and {info.dtype}, "
                f"received {out.shape} and {out.dtype}"
            )
        direct = out is not None and out.flags.c_contiguous and out.flags.writeable
        block = out if out is not None and direct else np.empty(shape, info.dtype)
        if block.size:
            dataset = self._datasets[path].id
            memory = h5s.create_simple(shape) if shape else h5s.create(h5s.SCALAR)
            try:
                dataset.read(memory, select_block(dataset, starts, shape), block)
            except OSError as error:
                raise CheckpointError(
                    f"{self.file}: tensor {path}, extent {describe_block(starts, shape)}: cannot be read ({error})"
                ) from error
        if out is None or direct:
            return block
        out[...] = block
        return out

    def offset(self, path: str) -> int:
        """Return where the bytes of a tensor begin in the file; 0 for one without elements."""
        return self._datasets[path].id.get_offset() or 0

    def extent_table(self) -> tuple[list[str], NDArray[np.void]]:
        """Return the paths that `/integrity/extents` counts by, and that table.

        Raises:
            CheckpointError: the tables are missing or do not belong to the tensors.
        """
        for path in (TENSOR_INDEX, EXTENT_TABLE):
            if path not in self._datasets:
                raise self._refusal(path, "missing")
        paths = [path.decode() for path in self._datasets[TENSOR_INDEX][...].tolist()]
        table = self._datasets[EXTENT_TABLE][...]
        if paths != list(self.tensors) or (table.size and int(table["tensor"].max()) >= len(paths)):
            raise self._refusal(TENSOR_INDEX, "does not list the tensors of the file")
        return paths, table

    def _walk(self, group: h5py.Group, visited: set[Any]) -> Iterator[tuple[str, h5py.Dataset]]:
        """Yield all datasets below a group, each one checked; refuse every link but the one that owns an object."""
        for name in group:
            path = f"{group.name.rstrip('/')}/{name}"
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise self._refusal(path, "a soft or external link, which could lead to another file")
            item = group[name]
            if item in visited:
                raise self._refusal(path, "a second name of another object")
            visited.add(item)
            if isinstance(item, h5py.Group):
                yield from self._walk(item, visited)
            elif isinstance(item, h5py.Dataset):
                self._check_dataset(path, item)
                yield path, item
            else:
                raise self._refusal(path, "neither a group nor a dataset")

    def _check_dataset(self, path: str, dataset: h5py.Dataset) -> None:
        creation = dataset.id.get_create_plist()
        if creation.get_layout() == h5d.VIRTUAL:
            raise self._refusal(path, "a virtual dataset, which reads other files")
        if creation.get_external_count():
            raise self._refusal(path, "its bytes lie in an external file")
        if creation.get_nfilters():
            raise self._refusal(path, "it has a filter")
        if creation.get_layout() != h5d.CONTIGUOUS:
            raise self._refusal(path, "its layout is not contiguous")
        if dataset.dtype.hasobject or dataset.shape is None:
            raise self._refusal(path, "it has no fixed-size elements")
        nbytes = dataset.size * dataset.dtype.itemsize
        if not nbytes:
            return
        offset = dataset.id.get_offset()
        if offset is None or dataset.id.get_storage_size() != nbytes or offset + nbytes > self._nbytes:
            raise self._refusal(path, f"its {nbytes} bytes do not lie in the file of {self._nbytes} bytes")

    def _read_attributes(self) -> dict[str, AttributeValue]:
        attributes: dict[str, AttributeValue] = {}
        if META_GROUP not in self._data:
            raise self._refusal(META_GROUP, "missing")
        meta = self._data[META_GROUP].attrs
        for name in meta:
            identifier = meta.get_id(name)
            if identifier.shape != () or identifier.dtype.kind not in "ifS":
                raise self._refusal(META_GROUP, f"attribute {name!r} is no number or fixed-length text")
            value = meta[name]
            attributes[name] = value.decode() if isinstance(value, bytes) else value if isinstance(value, str) else value.item()
        return attributes

    def _refusal(self, path: str, reason: str) -> CheckpointError:
        return CheckpointError(
            f"{self.file}: {path} refused: {reason}; the file was not written by lepton_mpi, or was changed since"
        )
