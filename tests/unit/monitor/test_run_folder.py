"""The run folder: what it makes, what it writes, and what it does when the disk refuses."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lepton_mpi.errors import ConfigError, LeptonError
from lepton_mpi.monitor.run_folder import RunFolder, claim_folder, default_run_name
from lepton_mpi.monitor.summary import GridSizes, Summary, Versions

SUMMARY = Summary(
    "finished",
    3,
    1.0,
    float("nan"),
    None,
    False,
    0.5,
    "ab",
    GridSizes(1, 1, 1),
    9.0,
    0.1,
    2.0,
    Versions("1", "2", "3", "4", "5", "6"),
)


def read_steps(folder: RunFolder) -> list[object]:
    """Return the steps of all lines; fails on a line that is not JSON."""
    return [json.loads(line, parse_constant=pytest.fail)["step"] for line in folder.metrics_path.read_text().splitlines()]


@contextmanager
def full_disk(num_bytes: int) -> Iterator[None]:
    """Let no file grow past so many bytes; the system then refuses writes as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_the_folder_is_made_with_its_parts_and_may_exist(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "a"
    for _ in range(2):
        with RunFolder(path) as folder:
            folder.write_config("[run]\n")
    assert sorted(entry.name for entry in path.iterdir()) == ["checkpoints", "config.toml", "logs", "metrics.jsonl"]
    assert (path / "config.toml").read_text() == "[run]\n"


def test_the_summary_replaces_the_earlier_one_and_leaves_nothing_else(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        folder.summary_path.write_text("old")
        folder.write_summary(SUMMARY)
    assert json.loads(folder.summary_path.read_text())["status"] == "finished"
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


def test_a_run_is_finished_where_its_summary_says_so(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        assert not folder.is_finished(3)
        folder.write_summary(SUMMARY)
        assert folder.is_finished(3)
        assert not folder.is_finished(4)
        folder.write_summary(replace(SUMMARY, status="running"))
        assert not folder.is_finished(3)
        for damaged in ("", "{", "[3]"):
            folder.summary_path.write_text(damaged)
            assert not folder.is_finished(3)


def test_metrics_are_one_valid_json_object_a_line_at_once(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        folder.append_metrics({"step": np.int64(1), "loss": np.float32(0.5), "norms": [1.0, float("inf")], "note": "é\n"})
        folder.append_metrics({"step": 2, "loss": float("nan")})
        lines = folder.metrics_path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line, parse_constant=pytest.fail) for line in lines] == [
        {"step": 1, "loss": 0.5, "norms": [1.0, None], "note": "é\n"},
        {"step": 2, "loss": None},
    ]


def test_resuming_drops_later_lines_and_a_torn_one_and_appends_after_the_rest(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        for step in range(1, 6):
            folder.append_metrics({"step": step})
    with folder.metrics_path.open("ab") as file:
        file.write(b'\n[1]\n"text"\n\xff\n{"step": "odd"}\n{"step": 3, "lo')
    with RunFolder(tmp_path) as folder:
        assert folder.truncate_metrics(after_step=3) == 2 + 4  # steps 4 and 5; four lines that are no objects
        folder.append_metrics({"step": 4})
        assert read_steps(folder) == [1, 2, 3, "odd", 4]
        assert folder.truncate_metrics(after_step=9) == 0
        assert folder.truncate_metrics(after_step=0) == 4
        assert read_steps(folder) == ["odd"]


@pytest.mark.parametrize(("content", "kept"), [(b'{"step": 1}\n{"st', [1]), (b'{"st', []), (b"", [])])
def test_a_torn_last_line_does_not_swallow_the_next_record(tmp_path: Path, content: bytes, kept: list[int]) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(content)
    with RunFolder(tmp_path) as folder:
        folder.append_metrics({"step": 7})
        assert read_steps(folder) == [*kept, 7]


@pytest.mark.parametrize("blocked", ["a", "a/b", "a/b/logs", "a/b/checkpoints"])
def test_a_file_where_a_folder_belongs_is_an_error_that_names_the_key(tmp_path: Path, blocked: str) -> None:
    (tmp_path / blocked).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / blocked).touch()
    with pytest.raises(ConfigError, match=r"run\.dir: cannot use the run folder .*a/b"):
        RunFolder(tmp_path / "a" / "b")


def test_a_metrics_file_that_cannot_be_opened_is_an_error_that_names_the_key(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(ConfigError, match=r"run\.dir: .*Is a directory"):
        RunFolder(tmp_path)


@pytest.mark.parametrize(
    "write",
    [lambda folder: folder.append_metrics({"step": 1, "text": "x" * 100}), lambda folder: folder.write_summary(SUMMARY)],
)
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path, write: Callable[[RunFolder], Any]) -> None:
    with RunFolder(tmp_path) as folder:
        with full_disk(num_bytes=64), pytest.raises(LeptonError, match=r"cannot write .*; see whether its disk is full"):
            write(folder)
        write(folder)  # and once there is room it goes on
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


def test_a_failed_rewrite_of_the_metrics_is_an_error_and_keeps_the_file(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        for step in range(20):
            folder.append_metrics({"step": step})
        with full_disk(num_bytes=64), pytest.raises(LeptonError, match=r"cannot write .*metrics\.jsonl"):
            folder.truncate_metrics(after_step=15)
        assert read_steps(folder) == list(range(20))


def test_a_failed_write_keeps_the_earlier_configuration(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        folder.write_config("first")
        with full_disk(num_bytes=64), pytest.raises(LeptonError, match=r"config\.toml"):
            folder.write_config("x" * 1000)
        assert folder.config_path.read_text() == "first"
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


def test_closing_twice_is_allowed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.close()
    folder.close()


def test_the_default_name_tells_model_data_and_time() -> None:
    assert default_run_name("mlp", "digits", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)) == "mlp-digits-20260102-030405"


def test_a_name_that_is_taken_gets_a_number(tmp_path: Path) -> None:
    parent = tmp_path / "runs"
    assert [claim_folder(parent, "a").name for _ in range(3)] == ["a", "a-2", "a-3"]
    assert sorted(os.listdir(parent)) == ["a", "a-2", "a-3"]


def test_claiming_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"run\.dir"):
        claim_folder(tmp_path / "file", "a")
    with pytest.raises(ConfigError, match=r"run\.dir: .*File name too long"):
        claim_folder(tmp_path, "a" * 300)


def test_a_deleted_folder_is_made_anew(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as folder:
        folder.append_metrics({"step": 1})
        assert not folder.restore()
        shutil.rmtree(tmp_path / "run")
        folder.append_metrics({"step": 2})  # goes to the file that nobody sees any more
        assert folder.restore()
        folder.append_metrics({"step": 3})
        assert read_steps(folder) == [3]
        assert folder.checkpoints.is_dir()
        (tmp_path / "run").rename(tmp_path / "moved")
        (tmp_path / "run").touch()
        with pytest.raises(ConfigError, match="cannot use the run folder"):
            folder.restore()


def test_a_line_that_does_not_fit_leaves_no_half(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as folder:
        folder.append_metrics({"step": 1})
        true_metrics, folder._metrics = folder._metrics, HalfFull(folder._metrics)
        with pytest.raises(LeptonError, match="cannot write"):
            folder.append_metrics({"step": 2})
        folder._metrics = true_metrics
        folder.append_metrics({"step": 3})
        assert read_steps(folder) == [1, 3]


class HalfFull:
    """A file on a disk that takes four more bytes."""

    def __init__(self, file: Any) -> None:
        self._file, self._left = file, 4

    def write(self, data: bytes) -> int:
        if not self._left:
            raise OSError(28, "No space left on device")
        written: int = self._file.write(data[: self._left])
        self._left -= written
        return written

    def seek(self, *where: int) -> Any:
        return self._file.seek(*where)

    def truncate(self, size: int) -> Any:
        return self._file.truncate(size)
