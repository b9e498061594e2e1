"""`data.stage_dir`: the data files copied once per node to a local disk, and read there by all ranks of the node.

A copy lies in `stage_dir/<digest>/data/<name>`, where the digest follows from the path, size and time of change of all files:
changed data gets a new copy, and unchanged data is copied once for all jobs. A copy is compared with its source before it gets its
name.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, final

from lepton_mpi.comm.agreement import do_on_root, raise_together
from lepton_mpi.comm.contract import collective
from lepton_mpi.config.schema import DataConfig
from lepton_mpi.data.storage.drafts import Draft, free_nbytes, open_draft, remove_abandoned
from lepton_mpi.errors import ConfigError, DataError
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.runtime.whole_file import sync

COPY_FILE = "COPY.json"
_CONTENT = "data"  # folder of a copy in which the file or folder lies
_KEYS = ("path", "labels_path", "test_path", "test_labels_path")
_BLOCK_NBYTES = 8 << 20


@final
@dataclass(frozen=True)
class SourceFile:
    """A file to copy: its path, its place below the copied file or folder ("" for a file), size and time of change; or a link."""

    path: str
    place: str
    nbytes: int
    changed_ns: int
    leads_to: str = ""


@collective("comm")
def stage(config: DataConfig, comm: MPI.Intracomm) -> DataConfig:
    """Return the `data` section with the paths of local copies, which one rank of each node makes where they are missing.

    Collective over comm. Without `data.stage_dir`, or for formats without files, nothing happens.

    Args:
        config: the `data` section.
        comm: all ranks that will read.

    Raises:
        ConfigError: the folder cannot be made or written, on any node.
        DataError: a source is missing, cannot be read or changes meanwhile, or the disk is too small, on any node.
    """
    paths = {name: getattr(config, name) for name in _KEYS if getattr(config, name)}
    if not config.stage_dir or not paths:
        return config
    node = cast(MPI.Intracomm, comm.Split_type(MPI.COMM_TYPE_SHARED, comm.Get_rank()))
    local: Mapping[str, str] = {}
    error: Exception | None = None
    try:
        local = do_on_root(node, lambda: stage_paths(paths, Path(config.stage_dir)))
    except Exception as found:
        error = found
    raise_together(comm, error)
    node.Free()
    return replace(config, **cast(Any, local))


def stage_paths(paths: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Copy files and folders to a local folder, unless there are complete copies, and return the paths there. Local.

    Args:
        paths: what to copy, by name.
        folder: `data.stage_dir`.

    Raises:
        ConfigError: the folder cannot be made or written.
        DataError: a source is missing, cannot be read or changes meanwhile, or the disk is too small.
    """
    sources = {path: list_files(path) for path in sorted(set(paths.values()))}
    needed = sum(_nbytes(files) for files in sources.values())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_abandoned(folder)
        copies = {path: _stage(path, files, folder) for path, files in sources.items()}
    except OSError as error:
        free = _free_or_none(folder)
        message = f"data.stage_dir {folder}: {error.strerror or error}: the data needs {needed} bytes, {free} are free"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DataError(f"{message}: make room, or set data.stage_dir to a larger disk or to nothing") from error
        raise ConfigError(f"{message}: give a folder of a local disk that can be written, or none") from error
    return {name: copies[path] for name, path in paths.items()}


def list_files(path: str) -> list[SourceFile]:
    """Return the regular files and links of a path, which is one file, all below a folder, or a pattern, sorted by place. Local.

    Raises:
        DataError: it is missing, cannot be read, or holds something that is neither file, folder nor link.
    """
    root, pattern = divide_pattern(path)
    try:
        if pattern:
            places = sorted(os.path.relpath(file, root) for file in glob.glob(os.path.join(glob.escape(root), pattern)))
            return [_describe(os.path.join(root, place), place, follow=True) for place in places]
        if not stat.S_ISDIR(os.stat(path).st_mode):
            return [_describe(path, "", follow=True)]
        found = []
        for root, folders, names in os.walk(path, onerror=_raise):
            links = [name for name in folders if os.path.islink(os.path.join(root, name))]
            for name in [*names, *links]:
                file = os.path.join(root, name)
                found.append(_describe(file, os.path.relpath(file, path), follow=False))
        return sorted(found, key=lambda file: file.place)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"{path!r}: expected a readable data file or folder: {reason}. Check data.path and the permissions"
        ) from error


def divide_pattern(path: str) -> tuple[str, str]:
    """Return the folder before the first part of a pattern (`*`, `?`, `[]`), and the rest; else the path, and nothing. Local."""
    if os.path.exists(path) or not glob.has_magic(path):
        return path, ""
    parts = path.split(os.sep)
    first = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    return os.sep.join(parts[:first]) or (os.sep if path.startswith(os.sep) else "."), os.sep.join(parts[first:])


def _describe(path: str, place: str, *, follow: bool) -> SourceFile:
    status = os.stat(path, follow_symlinks=follow)
    if stat.S_ISLNK(status.st_mode):  # stays a link, to the same file, for readers that tell the two apart
        return SourceFile(path, place, 0, status.st_mtime_ns, os.path.realpath(path))
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path}: expected a data file, found a device or pipe: it cannot be copied to data.stage_dir")
    return SourceFile(path, place, status.st_size, status.st_mtime_ns)


def _raise(error: OSError) -> None:
    raise error


def _nbytes(files: list[SourceFile]) -> int:
    return sum(file.nbytes for file in files)


def _free_or_none(folder: Path) -> str:
    """Return the free bytes of the disk of a folder that may not be there."""
    for place in (folder, *folder.parents):
        with contextlib.suppress(OSError):
            return str(free_nbytes(place))
    return "unknown"


def _stage(path: str, files: list[SourceFile], folder: Path) -> str:
    """Return the local path of a source, copied if need be."""
    root, pattern = divide_pattern(path)
    # The name as it was given, since formats and messages go by it.
    name = os.path.basename(os.path.normpath(root))
    stated = [(file.place, file.nbytes, file.changed_ns, file.leads_to) for file in files]
    target = folder / hashlib.sha256(json.dumps([os.path.realpath(root), name, stated]).encode()).hexdigest()[:32]
    copy = target / _CONTENT / name
    local = os.path.join(copy, pattern) if pattern else os.fspath(copy)
    if _is_complete(target, copy):
        return local
    with open_draft(target) as draft:
        needed, free = _nbytes(files), free_nbytes(folder)
        if needed > free:
            raise OSError(errno.ENOSPC, "no space left on the disk")
        _copy_all(files, draft.path / _CONTENT / name, path, draft)
        if target.exists():  # another job was faster, or a damaged copy must make way
            if _is_complete(target, copy):
                return local
            shutil.rmtree(target)
        try:
            draft.commit_folder()
        except OSError:
            if not _is_complete(target, copy):
                raise
    return local


def _is_complete(target: Path, copy: Path) -> bool:
    """Return whether a copy is there with all its files in their sizes; it was compared with its source when it was made."""
    try:
        listed = json.loads((target / COPY_FILE).read_text(encoding="utf-8"))
        return all(os.lstat(copy / place).st_size == nbytes for place, nbytes, _ in listed)
    except (OSError, ValueError, TypeError):
        return False


def _copy_all(files: list[SourceFile], copy: Path, path: str, draft: Draft) -> None:
    """Copy the files of a source, and write the list of them last."""
    (copy if not files or files[0].place else copy.parent).mkdir(parents=True)
    listed = []
    for file in files:
        place, digest = copy / file.place, ""
        place.parent.mkdir(parents=True, exist_ok=True)
        if file.leads_to:
            place.symlink_to(file.leads_to)
        else:
            digest = _copy(file, place)
        listed.append((file.place, place.lstat().st_size, digest))
    if list_files(path) != files:
        raise DataError(f"{path}: changed while it was copied to data.stage_dir: wait until it is written, then start again")
    list_path = draft.path / COPY_FILE
    list_path.write_text(json.dumps(listed), encoding="utf-8")
    sync(list_path)


def _copy(file: SourceFile, place: Path) -> str:
    """Copy a file, compare the copy with what was read, and return its SHA-256."""
    digest = hashlib.sha256()
    with open(place, "xb", buffering=0) as copy:
        for block in _read_blocks(file.path):
            digest.update(block)
            view = memoryview(block)
            while len(view):
                view = view[copy.write(view) :]
        os.fsync(copy.fileno())
        # So that what is compared comes from the disk where the system heeds this.
        os.posix_fadvise(copy.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        nbytes = os.fstat(copy.fileno()).st_size
    found = hashlib.sha256()
    for block in _read_blocks(place):
        found.update(block)
    if nbytes != file.nbytes or found.digest() != digest.digest():
        raise DataError(
            f"{place}: expected a copy of {file.path} with {file.nbytes} bytes and SHA-256 {digest.hexdigest()}, found {nbytes} "
            f"and {found.hexdigest()}: the file changes or the disk is damaged; see data.stage_dir"
        )
    return digest.hexdigest()


def _read_blocks(path: str | Path) -> Iterator[bytes]:
    try:
        with open(path, "rb", buffering=0) as file:
            while block := file.read(_BLOCK_NBYTES):
                yield block
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}: check the disk and the permissions") from error
