"""Output: files appear whole or not at all; devices, links and standard output are written to."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from lepton_mpi.cli.output import Output
from lepton_mpi.errors import ConfigError, LeptonError


def test_a_file_appears_at_commit_only(tmp_path: Path) -> None:
    path = tmp_path / "o.csv"
    path.write_text("old")
    output = Output(path)
    output.write("new\n")
    assert path.read_text() == "old"
    output.commit()
    output.close()
    assert path.read_text() == "new\n"
    assert list(tmp_path.iterdir()) == [path]


def test_without_commit_nothing_is_left(tmp_path: Path) -> None:
    output = Output(tmp_path / "o.csv")
    output.write("new\n")
    output.close()
    assert list(tmp_path.iterdir()) == []


def test_a_link_keeps_leading_to_its_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "o.csv")
    output = Output(tmp_path / "link")
    output.write("1\n")
    output.commit()
    output.close()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "o.csv").read_text() == "1\n"


def test_a_device_stays_a_device() -> None:
    output = Output(Path("/dev/null"))
    output.write("1\n")
    output.commit()
    output.close()
    assert Path("/dev/null").is_char_device()


def test_standard_output_is_flushed_and_stays_open(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(None)
    output.write("1\n")
    output.commit()
    output.close()
    print("2")
    assert capsys.readouterr().out == "1\n2\n"


def test_an_impossible_path_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--output: cannot write .*/no/o.csv: No such file or directory"):
        Output(tmp_path / "no" / "o.csv")


@pytest.mark.parametrize("when", ["write", "commit"])
def test_a_full_disk_is_an_error(when: str) -> None:
    output = Output(Path("/dev/full"))
    text = "x" * (1 << 20 if when == "write" else 1)  # beyond the buffer, or within it
    with pytest.raises(LeptonError, match=r"cannot write /dev/full: No space left on device"):
        output.write(text)
        assert when == "commit"
        output.commit()
    output.close()


class _Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError


def test_a_reader_that_went_away_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", _Broken())
    output = Output(None)
    with pytest.raises(BrokenPipeError):
        output.write("1\n")
    with pytest.raises(BrokenPipeError):
        output.commit()
    output.close()
