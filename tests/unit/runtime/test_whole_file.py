"""A file is the old one or the new one, and nothing else is left beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lepton_mpi.runtime import whole_file
from lepton_mpi.runtime.whole_file import WholeFile, make_folder, remove_leftovers


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


def test_leftovers_of_killed_jobs_are_removed_and_nothing_else(path: Path) -> None:
    abandoned = WholeFile(path)
    for name in (".mine.tmp", ".f-0123.tmp", "f-0123456789abcdef.tmp"):
        (path.parent / name).touch()
    (path.parent / ".folder-0123456789abcdef.tmp").mkdir()
    kept = sorted(path.parent.iterdir())
    (left,) = remove_leftovers(path.parent)
    kept.remove(left)
    assert left.name.startswith(".f-")
    assert sorted(path.parent.iterdir()) == kept
    abandoned.close()
    assert remove_leftovers(path.parent / "none") == []


def test_the_names_of_folders_are_forced_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(whole_file, "sync", synced.append)
    make_folder(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()
    assert sorted(synced) == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
    synced.clear()
    make_folder(tmp_path / "a" / "b" / "c")  # a job that was killed may have made it without forcing it there
    assert synced == [tmp_path / "a" / "b"]


def test_a_folder_under_one_that_cannot_be_read_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(whole_file, "sync", refuse)
    make_folder(tmp_path / "a")
    assert (tmp_path / "a").is_dir()


def test_a_folder_that_cannot_be_made(path: Path) -> None:
    with pytest.raises(FileExistsError):
        make_folder(path)
