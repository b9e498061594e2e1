"""Make a checkpoint appear whole or not at all, whatever instant the job is killed at."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shutil
from pathlib import Path

from lepton_mpi.checkpoint.layout import MANIFEST_FILE, STEP_FOLDER
from lepton_mpi.checkpoint.manifest import Manifest
from lepton_mpi.runtime.whole_file import make_folder, sync

LATEST_FILE = "LATEST"
_TEMPORARY = re.compile(r"\.step-\d{9,}-[0-9a-f]{16}\.tmp", re.ASCII)

_logger = logging.getLogger(__name__)


def list_checkpoints(root: Path, *, damaged: bool = False) -> list[Path]:
    """Return the committed checkpoints below a directory, newest first.

    Local. A `.replaced` one is the predecessor of the same step, left by a job that was killed while it replaced it.

    Args:
        root: the directory; there need be none.
        damaged: list those too whose manifest is gone. A commit gives a folder its name after its manifest, so they were whole.
    """
    found = []
    for path in root.iterdir() if root.is_dir() else ():
        match = STEP_FOLDER.fullmatch(path.name)
        if match and (damaged or (path / MANIFEST_FILE).is_file()):
            found.append((int(match[1]), match[2] is None, path))
    return [path for *_, path in sorted(found, reverse=True)]


def remove_unfinished(root: Path) -> list[Path]:
    """Delete what killed jobs left half written, and what they had replaced but not yet deleted, and return it.

    Local. Only for the one rank of the one job that owns the directory.
    """
    unfinished = [path for path in root.iterdir() if _TEMPORARY.fullmatch(path.name)] if root.is_dir() else []
    for path in list_checkpoints(root):
        replaced = path.with_name(f"{path.name}.replaced")
        if replaced.is_dir():
            sync(root)  # its successor's name may not be on the disk yet
            doomed = temporary_name(root, int(path.name.removeprefix("step-")))
            unfinished.append(replaced.rename(doomed))
    for path in unfinished:
        shutil.rmtree(path)
    return unfinished


def make_temporary(root: Path, step: int) -> Path:
    """Create a directory that no other job has, in which a checkpoint of this step grows. Local."""
    make_folder(root)
    path = temporary_name(root, step)
    path.mkdir()
    return path


def committed_path(root: Path, step: int) -> Path:
    """Return where the committed checkpoint of a step lies. Local."""
    return root / f"step-{step:09d}"


def commit(temporary: Path, root: Path, manifest: Manifest) -> None:
    """Write the manifest, then give the directory its final name.

    Local; the data file is on the disk already. Each rename happens only after what it announces is on the
    disk. A checkpoint of the same step makes way for the new one and is deleted last; killed in between,
    the old or the new one is still listed.

    Raises:
        OSError: the file system refused; the older checkpoints are as they were.
    """
    draft = temporary / f"{MANIFEST_FILE}.tmp"
    _write_synced(draft, manifest.to_json())
    draft.rename(temporary / MANIFEST_FILE)
    sync(temporary)
    final = committed_path(root, manifest.step)
    replaced = final.with_name(f"{final.name}.replaced")
    if final.exists():
        _remove(replaced, root, manifest.step)
        final.rename(replaced)
    try:
        temporary.rename(final)
        sync(root)
    except OSError:
        if final.exists():
            final.rename(temporary)
        if replaced.exists():
            replaced.rename(final)
        raise
    _finish(root, final, replaced, manifest.step)


def _finish(root: Path, final: Path, replaced: Path, step: int) -> None:
    """Tidy up after a commit; what fails here fails no checkpoint, so it is only reported."""
    try:
        _remove(replaced, root, step)
        hint = root / f".{LATEST_FILE}.tmp"
        hint.write_text(f"{final.name}\n", encoding="utf-8")
        hint.rename(root / LATEST_FILE)
    except OSError as error:
        _logger.warning("checkpoint %s is complete, but %s could not be tidied up: %s", final, root, error)


def _remove(path: Path, root: Path, step: int) -> None:
    """Delete a checkpoint, if there is one, by a name under which nobody takes it for whole."""
    doomed = temporary_name(root, step)
    with contextlib.suppress(FileNotFoundError):
        path.rename(doomed)
        sync(root)
        shutil.rmtree(doomed)


def temporary_name(root: Path, step: int) -> Path:
    """Return a name that no other directory has, of one that is not, or no longer, a checkpoint. Local."""
    return root / f".step-{step:09d}-{secrets.token_hex(8)}.tmp"


def _write_synced(file: Path, text: str) -> None:
    with file.open("x", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
