"""Log files of one process that plays several ranks."""

from __future__ import annotations

import logging
import platform
import re
import shutil
from pathlib import Path

import pytest

from lepton_mpi.errors import ConfigError
from lepton_mpi.runtime.logs import log_path, start_logging

LOGGER = logging.getLogger("lepton_mpi.train")


def test_rank_0_logs_at_its_level_with_time_rank_and_host(tmp_path: Path) -> None:
    with start_logging(0, 4, tmp_path, "INFO"):
        LOGGER.debug("too detailed")
        LOGGER.info("loss %.1f", 0.5)
    (line,) = (tmp_path / "logs" / "rank-0000.log").read_text().splitlines()
    host = re.escape(platform.node())
    assert re.fullmatch(rf"\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{{3}}Z INFO rank 0/4 {host} lepton_mpi\.train: loss 0\.5", line)


def test_times_are_utc(tmp_path: Path) -> None:
    with start_logging(0, 1, tmp_path):
        LOGGER.handle(logging.makeLogRecord({"name": "lepton_mpi", "levelno": logging.ERROR, "created": 0.0, "msecs": 7.0}))
    assert (tmp_path / "logs" / "rank-0000.log").read_text().startswith("1970-01-01T00:00:00.007Z")


@pytest.mark.parametrize(("level", "expected"), [("DEBUG", ["w", "e"]), ("ERROR", ["e"])])
def test_other_ranks_log_warnings_in_files_that_appear_with_the_first(tmp_path: Path, level: str, expected: list[str]) -> None:
    path = tmp_path / "logs" / "rank-0003.log"
    with start_logging(3, 4, tmp_path, level):
        LOGGER.info("i")
        assert not path.exists()
        LOGGER.warning("w")
        LOGGER.error("e")
    assert [line.rpartition(": ")[2] for line in path.read_text().splitlines()] == expected


def test_a_later_run_appends(tmp_path: Path) -> None:
    for _ in range(2):
        with start_logging(0, 1, tmp_path):
            LOGGER.info("hello")
    assert len((tmp_path / "logs" / "rank-0000.log").read_text().splitlines()) == 2


def test_closing_restores_the_logger_and_may_be_repeated(tmp_path: Path) -> None:
    logger = logging.getLogger("lepton_mpi")
    before = (list(logger.handlers), logger.level)
    logs = start_logging(0, 1, tmp_path, "DEBUG")
    assert logger.level == logging.DEBUG and len(logger.handlers) == len(before[0]) + 1
    logs.close()
    logs.close()
    assert (list(logger.handlers), logger.level) == before


def test_without_a_folder_records_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with start_logging(1, 2, None):
        LOGGER.warning("careful")
    assert "WARNING rank 1/2" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"run\.dir: cannot write the log file .*file/logs/rank-0000\.log: Not a directory"):
        start_logging(0, 1, tmp_path / "file")


def test_a_late_file_that_cannot_be_made_does_not_stop_the_rank(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with start_logging(1, 2, tmp_path):
        (tmp_path / "logs" / "rank-0001.log").mkdir()
        LOGGER.warning("careful")
    assert "Is a directory" in capsys.readouterr().err  # logging's own report


def test_a_file_that_was_deleted_is_made_anew(tmp_path: Path) -> None:
    with start_logging(0, 1, tmp_path):
        LOGGER.info("first")
        (tmp_path / "logs" / "rank-0000.log").unlink()
        LOGGER.info("second")
    (line,) = (tmp_path / "logs" / "rank-0000.log").read_text().splitlines()
    assert line.endswith("second")


def test_a_file_that_cannot_be_written_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with start_logging(0, 1, tmp_path):
        shutil.rmtree(tmp_path / "logs")
        for _ in range(3):
            LOGGER.info("lost")
    assert capsys.readouterr().err.splitlines() == [
        f"lepton_mpi: the log {tmp_path}/logs/rank-0000.log cannot be written: No such file or directory"
    ]


def test_file_names_sort_by_rank(tmp_path: Path) -> None:
    assert log_path(tmp_path, 7, 16).name == "rank-0007.log"
    assert log_path(tmp_path, 7, 100_000).name == "rank-00007.log"
    assert log_path(tmp_path, 7, 100_001).name == "rank-000007.log"
