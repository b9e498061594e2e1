"""Tables of text of any size as NPY files, so that what reads them later needs neither the memory nor the order."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.comm.agreement import do_on_root, raise_together
from lepton_mpi.comm.contract import collective
from lepton_mpi.config.schema import DataConfig
from lepton_mpi.data.formats.csv import CsvReader, narrow_numbers
from lepton_mpi.data.needs import DataNeeds
from lepton_mpi.data.storage.drafts import open_draft, remove_abandoned
from lepton_mpi.errors import LeptonError
from lepton_mpi.runtime.mpi import MPI

_WIDER = ("int32", "int64", "float32")  # from narrow to wide, as `narrow_numbers` chooses them
_HEADER_NBYTES = 128
_COPY_ROWS = 1 << 16


@contextlib.contextmanager
@collective("comm")
def spooled(config: DataConfig, needs: DataNeeds, beside: Path, comm: MPI.Intracomm) -> Iterator[DataConfig]:
    """Give a section that reads the same samples without holding them in memory, as long as the context lasts.

    Collective over comm. Rank 0 reads CSV files from beginning to end and writes what they hold to temporary NPY files; other
    formats stay as they are.

    Args:
        config: the `data` section.
        needs: what the task needs of the data.
        beside: the files are made beside this place, which all ranks must see.
        comm: all ranks that will read.

    Raises:
        DataError: a file is missing or malformed.
        LeptonError: the temporary files cannot be written.
    """
    if config.format != "csv":
        yield config
        return
    with contextlib.ExitStack() as stack:
        folder, error = "", None
        if comm.Get_rank() == 0:
            try:
                remove_abandoned(beside.parent, beside.name)
                folder = os.fspath(stack.enter_context(open_draft(beside)).path)
            except OSError as found:
                error = _unwritable(beside, found)
        raise_together(comm, error)
        yield do_on_root(comm, lambda: _spool(config, needs, Path(folder)))


def _spool(config: DataConfig, needs: DataNeeds, folder: Path) -> DataConfig:
    """Return the section of the NPY files that this makes of the CSV files."""
    paths = {}
    for name, labels_name, source in (
        ("path", "labels_path", config.path),
        ("test_path", "test_labels_path", config.test_path),
    ):
        if source:
            (folder / name).mkdir()
            # The name of the source, as messages and the manifest have it.
            inputs, labels = folder / name / os.path.basename(source), folder / name / "labels.npy"
            paths[name] = os.fspath(inputs)
            try:
                paths[labels_name] = os.fspath(labels) if spool_csv(source, config, needs, inputs, labels) else ""
            except OSError as error:
                raise _unwritable(folder, error) from error
    return replace(config, format="npy", stage_dir="", **cast(Any, paths))


def spool_csv(path: str, config: DataConfig, needs: DataNeeds, inputs_path: Path, labels_path: Path) -> bool:
    """Write the samples of a CSV file as NPY files, of the types that `open_csv` gives them. Local.

    Args:
        path: the CSV file.
        config: the `data` section, for the names of columns and the classes.
        needs: what the task needs of the data.
        inputs_path: file to make for the inputs.
        labels_path: file to make for the labels, where there are any.

    Returns:
        Whether there are labels.

    Raises:
        DataError: the file is missing or malformed.
        OSError: the files cannot be written.
    """
    reader = CsvReader(path, config.label_column, config.num_classes, label_kind=needs.labels)
    with contextlib.ExitStack() as stack:
        inputs = stack.enter_context(GrowingNpy(inputs_path))
        labels = stack.enter_context(GrowingNpy(labels_path)) if reader.num_labels else None
        for features, answers in reader.chunks():
            inputs.append(narrow_numbers(features))
            if labels is not None and answers is not None:
                labels.append(answers)
    return labels is not None


@final
class GrowingNpy:
    """An NPY file whose number of rows is known at its end; a context that completes it.

    Local. The type of the elements is the widest of all that was appended: int32, int64 or float32.

    Args:
        path: the file to make.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("xb")
        self._dtype = np.dtype("int32")
        self._row_shape: tuple[int, ...] = ()
        self._num_rows = 0

    def __enter__(self) -> GrowingNpy:
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            if self._num_rows:
                self._write_header()

    def append(self, rows: NDArray[Any]) -> None:
        """Add rows, [n, ...] with n of at least 1.

        Raises:
            OSError: the file system refused.
        """
        if not self._num_rows:
            self._dtype, self._row_shape = rows.dtype, rows.shape[1:]
            self._file.seek(_HEADER_NBYTES)
        elif _WIDER.index(rows.dtype.name) > _WIDER.index(self._dtype.name):
            self._widen(rows.dtype)
        self._file.write(np.ascontiguousarray(rows, self._dtype).reshape(-1).view(np.uint8).data)
        self._num_rows += len(rows)

    def _widen(self, dtype: np.dtype[Any]) -> None:
        """Write everything again in a wider type."""
        narrow = self._path.with_suffix(".narrow")
        self._file.close()
        self._path.rename(narrow)
        self._file = self._path.open("xb")
        self._file.seek(_HEADER_NBYTES)
        shape = (self._num_rows, math.prod(self._row_shape))
        old = np.memmap(narrow, self._dtype, "r", _HEADER_NBYTES, shape)
        for first in range(0, self._num_rows, _COPY_ROWS):
            self._file.write(old[first : first + _COPY_ROWS].astype(dtype).reshape(-1).view(np.uint8).data)
        narrow.unlink()
        self._dtype = dtype

    def _write_header(self) -> None:
        """Write a header of NPY's version 1.0, padded with spaces to the place of the elements."""
        shape = (self._num_rows, *self._row_shape)
        text = repr({"descr": self._dtype.newbyteorder("<").str, "fortran_order": False, "shape": shape})
        space = _HEADER_NBYTES - 10 - 1
        assert len(text) <= space, text
        self._file.seek(0)
        self._file.write(b"\x93NUMPY\x01\x00" + (space + 1).to_bytes(2, "little") + text.ljust(space).encode() + b"\n")


def _unwritable(place: Path, error: OSError) -> LeptonError:
    return LeptonError(
        f"cannot write temporary files beside {place}: {error.strerror or error}; see whether its disk is full, over quota or "
        "read-only"
    )
