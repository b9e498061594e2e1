"""A file is the old one or the new one, and nothing else is left beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lepton_mpi.runtime.whole_file import WholeFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "f").write_text("old")
    return tmp_path / "f"


def test_it_appears_when_it_is_committed(path: Path) -> None:
    with WholeFile(path) as whole:
        whole.file.write(b"new")
        assert path.read_text() == "old"
        whole.commit()
        assert path.read_text() == "new"
    whole.close()
    assert [file.name for file in path.parent.iterdir()] == ["f"]


def test_an_error_leaves_what_was_there(path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"), WholeFile(path) as whole:
        whole.file.write(b"half")
        raise RuntimeError("stop")
    assert path.read_text() == "old"
    assert [file.name for file in path.parent.iterdir()] == ["f"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        WholeFile(tmp_path / "none" / "f")
