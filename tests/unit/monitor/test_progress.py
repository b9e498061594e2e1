"""The displays, with streams in memory and a clock that the test moves."""

from __future__ import annotations

import io
import os
import pty
from collections.abc import Iterator
from typing import TextIO

import pytest

from lepton_mpi.errors import ConfigError
from lepton_mpi.monitor.progress import NoProgress, Progress, ProgressBar, ProgressLines, choose_progress
from lepton_mpi.monitor.terminal import Terminal


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class BrokenStream(io.StringIO):
    """A stream whose reader goes away after some writes."""

    def __init__(self, error: Exception, after: int) -> None:
        super().__init__()
        self.error, self.left, self.num_calls = error, after, 0

    def write(self, text: str) -> int:
        self.num_calls += 1
        if self.left == 0:
            raise self.error
        self.left -= 1
        return super().write(text)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make_bar(stream: TextIO, clock: Clock) -> ProgressBar:
    return ProgressBar(Terminal(stream, descriptor=-1, owned=False), clock)  # 80 columns, since -1 has no width


def train(progress: Progress, clock: Clock, first: int, last: int, num_steps: int, step_s: float) -> None:
    progress.start(first, num_steps)
    for step in range(first + 1, last + 1):
        clock.now += step_s
        progress.update(step, 1.0 / step, 1234.5)


def test_lines_come_every_few_seconds_and_once_more_at_the_end(clock: Clock) -> None:
    stream = io.StringIO()
    progress = ProgressLines(stream, every_s=5.0, clock=clock)
    train(progress, clock, first=0, last=12, num_steps=100, step_s=1.0)
    progress.close()
    progress.close()
    assert stream.getvalue().splitlines() == [
        "step 5/100 (5%)  loss 0.2  1,234 samples/s  ETA 0:01:35",
        "step 10/100 (10%)  loss 0.1  1,234 samples/s  ETA 0:01:30",
        "step 12/100 (12%)  loss 0.08333  1,234 samples/s  ETA 0:01:28",
    ]


def test_lines_end_with_the_duration_and_are_not_repeated(clock: Clock) -> None:
    stream = io.StringIO()
    progress = ProgressLines(stream, every_s=5.0, clock=clock)
    train(progress, clock, first=0, last=5, num_steps=5, step_s=1.0)
    progress.note("accuracy 0.9")
    progress.close()
    assert stream.getvalue().splitlines() == ["step 5/5 (100%)  loss 0.2  1,234 samples/s  took 0:00:05", "accuracy 0.9"]


def test_after_a_resume_the_remaining_time_counts_only_the_steps_done_here(clock: Clock) -> None:
    stream = io.StringIO()
    progress = ProgressLines(stream, every_s=1.0, clock=clock)
    train(progress, clock, first=90, last=91, num_steps=100, step_s=2000.0)
    assert stream.getvalue().endswith("ETA 5:00:00\n")
    progress.start(91, 1000)
    clock.now += 1000.0
    progress.update(91, float("nan"), 0.0)
    clock.now += 1000.0
    progress.update(92, 1.0, 0.0)
    assert stream.getvalue().splitlines()[1:] == [
        "step 91/1000 (9%)  loss nan  0 samples/s  ETA -",
        "step 92/1000 (9%)  loss 1  0 samples/s  ETA 21d 0:26:40",
    ]


def test_the_bar_is_redrawn_on_one_line_within_the_width(clock: Clock) -> None:
    stream = io.StringIO()
    progress = make_bar(stream, clock)
    train(progress, clock, first=0, last=20, num_steps=20, step_s=0.0625)  # exact in binary
    progress.close()
    progress.close()
    text = stream.getvalue()
    assert text.count("\n") == 1 and text.endswith("\n")
    drawings = text.removesuffix("\n").split("\r")[1:]
    assert len(drawings) == 11  # every second step is more than 0.1 s after the last drawing; and the end
    assert all(len(drawing) <= 79 for drawing in drawings)
    bars = [drawing.partition("[")[2].partition("]")[0] for drawing in drawings]
    assert drawings[4].startswith("step 10/20 (50%)  [") and bars[4].count("#") == len(bars[4]) // 2
    assert set(bars[-1]) == {"#"} and drawings[-1].rstrip().endswith("took 0:00:01")


def test_a_shorter_drawing_covers_the_longer_one_before(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    progress = make_bar(stream, clock)
    monkeypatch.setattr(Terminal, "columns", lambda terminal: 200)  # the bar has its full length, the text varies
    progress.start(0, 10)
    for loss in (0.1234, 1.0):
        clock.now += 1.0
        progress.update(1, loss, 1e6)
    first, second = stream.getvalue().split("\r")[1:]
    assert len(second.rstrip()) < len(first) == len(second)


def test_a_note_replaces_the_bar_which_is_drawn_again_below(clock: Clock) -> None:
    stream = io.StringIO()
    progress = make_bar(stream, clock)
    progress.note("starting")
    train(progress, clock, first=0, last=1, num_steps=10, step_s=1.0)
    drawn = stream.getvalue().split("\r")[-1]
    progress.note("accuracy 0.9")
    lines = stream.getvalue().split("\n")
    assert lines[0] == "\rstarting"
    assert lines[1].split("\r")[-1] == "accuracy 0.9".ljust(len(drawn))
    assert lines[2] == "\r" + drawn


def test_a_narrow_terminal_gets_facts_without_bar_cut_to_its_width(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    progress = make_bar(stream, clock)
    monkeypatch.setattr(Terminal, "columns", lambda terminal: 31)
    train(progress, clock, first=0, last=1, num_steps=10, step_s=1.0)
    assert stream.getvalue() == "\rstep 1/10 (10%)  loss 1  1,234"


def test_a_bar_that_never_began_writes_nothing(clock: Clock) -> None:
    stream = io.StringIO()
    make_bar(stream, clock).close()
    assert stream.getvalue() == ""


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(5, "Input/output error"), ValueError("closed file")])
@pytest.mark.parametrize("kind", ["bar", "lines"])
def test_a_stream_that_breaks_is_left_alone_and_training_goes_on(error: Exception, kind: str, clock: Clock) -> None:
    stream = BrokenStream(error, after=1)
    progress = choose_progress(kind, stream, 1.0, clock)
    train(progress, clock, first=0, last=9, num_steps=10, step_s=1.0)
    progress.note("more")
    progress.close()
    assert stream.num_calls == 2 and "step 1/10" in stream.getvalue() and "step 2/10" not in stream.getvalue()


def test_a_letter_that_the_encoding_lacks_costs_only_its_own_line(clock: Clock) -> None:
    raw = io.BytesIO()
    progress = ProgressLines(io.TextIOWrapper(raw, encoding="ascii"), 1.0, clock)
    progress.note("données")
    progress.note("data")
    assert raw.getvalue() == b"data\n"


@pytest.fixture
def terminal() -> Iterator[TextIO]:
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w") as stream:
        yield stream
    os.close(leader)


@pytest.mark.parametrize(
    ("kind", "expected"), [("auto", ProgressLines), ("bar", ProgressBar), ("lines", ProgressLines), ("off", NoProgress)]
)
def test_the_kind_decides_where_nobody_watches(kind: str, expected: type[Progress]) -> None:
    assert type(choose_progress(kind, io.StringIO(), 5.0)) is expected


def test_a_terminal_gets_a_bar_unless_it_cannot_move_its_cursor(terminal: TextIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lepton_mpi.monitor.terminal._ancestors", lambda proc, pid: [])  # whoever started the tests
    monkeypatch.setenv("TERM", "xterm")
    assert type(choose_progress("auto", terminal, 5.0)) is ProgressBar
    monkeypatch.setenv("TERM", "dumb")
    assert type(choose_progress("auto", terminal, 5.0)) is ProgressLines


def test_another_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"run\.progress: expected one of auto, bar, lines, off, got 'dots'"):
        choose_progress("dots", io.StringIO(), 5.0)


def test_no_progress_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress = NoProgress()
    progress.start(0, 2)
    progress.update(1, 0.5, 1.0)
    progress.note("text")
    progress.close()
    assert capsys.readouterr() == ("", "")
