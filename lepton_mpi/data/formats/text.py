"""Text as bytes, each of which is a token: a file, a folder, or the Python standard library."""

from __future__ import annotations

import os
import stat
import sysconfig

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.data.formats.tokens import TokenWindows, cut_windows
from lepton_mpi.data.validation import check_file
from lepton_mpi.errors import DataError

NUM_BYTE_TOKENS = 256
# Installed packages differ from machine to machine; test folders hold generated tables and damaged text.
_LEFT_OUT = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})


def open_text(path: str, context: int, vocabulary: int = 0) -> TokenWindows:
    """Open a file, or all files of a folder and its subfolders, as one text. Local.

    The files of a folder are joined with newlines, sorted by name: those of a folder come before those of its subfolders. Symbolic
    links in it are left out.

    Args:
        path: the file or folder.
        context: bytes of a sample.
        vocabulary: number of tokens, at least 256; 0: 256.

    Raises:
        ConfigError: `context` is 0.
        DataError: the file or folder is missing, unreadable or empty, or the text shorter than a window.
    """
    if os.path.isdir(path):
        text = _join_files(path)
    else:
        check_file(path)
        text = np.memmap(path, np.uint8, mode="r")
    return cut_windows(os.path.basename(os.path.normpath(path)), path, text, context, vocabulary or NUM_BYTE_TOKENS)


def open_standard_library(context: int, vocabulary: int = 0) -> TokenWindows:
    """Return the modules of the running Python's standard library, without its tests, as one text. Local.

    Arguments and errors are those of `open_text`.
    """
    path = sysconfig.get_path("stdlib")
    text = _join_files(path, ".py", _LEFT_OUT)
    return cut_windows("pystdlib", path, text, context, vocabulary or NUM_BYTE_TOKENS)


def _join_files(root: str, suffix: str = "", left_out: frozenset[str] = frozenset()) -> NDArray[np.uint8]:
    """Return the bytes of the regular files below a folder whose names end so, joined with newlines."""
    parts = []
    try:
        for folder, folders, names in os.walk(root, onerror=_raise):
            folders[:] = sorted(name for name in folders if name not in left_out)  # the order in which os.walk goes on
            for name in sorted(names):
                path = os.path.join(folder, name)
                if name.endswith(suffix) and stat.S_ISREG(os.lstat(path).st_mode):
                    with open(path, "rb") as file:
                        parts.append(file.read())
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}: check the permissions, or remove the file") from error
    if not any(parts):
        raise DataError(f"{root}: expected a folder with files of text, found none: check data.path")
    return np.frombuffer(b"\n".join(parts), np.uint8)


def _raise(error: OSError) -> None:
    raise error
