"""What a person sees while a run trains."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TextIO, final

from lepton_mpi.errors import ConfigError
from lepton_mpi.monitor.terminal import Terminal, find_terminal

Clock = Callable[[], float]

_REDRAW_S: Final = 0.1  # redrawing more often is not seen as smoother (Nielsen, "Usability Engineering", chapter 5.5)
_MIN_BAR: Final = 10  # columns below which a bar tells less than the text it would displace
_MAX_BAR: Final = 40


class Progress(ABC):
    """A display of a run's progress. Only rank 0 has one that shows something; all methods are local.

    Writing never raises: a terminal that went away must not stop the training.
    """

    @abstractmethod
    def start(self, step: int, num_steps: int) -> None:
        """Begin, with `step` of `num_steps` steps done already (more than 0 after a resume)."""

    @abstractmethod
    def update(self, step: int, loss: float, samples_per_s: float) -> None:
        """Tell that `step` steps are done; shows it when it is time to."""

    @abstractmethod
    def note(self, text: str) -> None:
        """Show a line that stays, e.g. the result of an evaluation."""

    @abstractmethod
    def close(self) -> None:
        """Show the last state and end the display; may be called twice."""


def choose_progress(kind: str, stream: TextIO, every_s: float, clock: Clock = time.monotonic) -> Progress:
    """Return the display that `run.progress` asks for.

    Local.

    Args:
        kind: `auto` (a bar on a terminal, lines otherwise), `bar`, `lines` or `off`.
        stream: this process's standard output; stays the caller's to close.
        every_s: seconds between lines.
        clock: monotonic clock, seconds.

    Raises:
        ConfigError: another kind.
    """
    if kind == "off":
        return NoProgress()
    if kind == "lines":
        return ProgressLines(stream, every_s, clock)
    if kind not in ("auto", "bar"):
        raise ConfigError(f"run.progress: expected one of auto, bar, lines, off, got {kind!r}")
    terminal = find_terminal(stream)
    if terminal is None and kind == "auto":
        return ProgressLines(stream, every_s, clock)
    return ProgressBar(terminal or Terminal(stream, descriptor=-1, owned=False), clock)


@final
class NoProgress(Progress):
    """Shows nothing; for `run.progress = "off"` and for all ranks but 0."""

    def start(self, step: int, num_steps: int) -> None:
        pass

    def update(self, step: int, loss: float, samples_per_s: float) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


@final
class ProgressLines(Progress):
    """A line every few seconds, for files and pipes.

    Args:
        stream: written to; not closed.
        every_s: seconds between lines.
        clock: monotonic clock, seconds.
    """

    def __init__(self, stream: TextIO, every_s: float, clock: Clock = time.monotonic) -> None:
        self._writer = _Writer(stream)
        self._every_s = every_s
        self._pace = _Pace(clock)
        self._state: _State | None = None

    def start(self, step: int, num_steps: int) -> None:
        self._pace.start(step, num_steps)

    def update(self, step: int, loss: float, samples_per_s: float) -> None:
        self._state = _State(step, loss, samples_per_s)
        if self._pace.is_due(self._every_s):
            self._show(self._state)

    def note(self, text: str) -> None:
        self._writer.write(text + "\n")

    def close(self) -> None:
        if self._state is not None:
            self._show(self._state)

    def _show(self, state: _State) -> None:
        self._writer.write("  ".join(_parts(state, self._pace)) + "\n")
        self._state = None


@final
class ProgressBar(Progress):
    """One line of a terminal, drawn again and again.

    Args:
        terminal: drawn on; closed with the bar.
        clock: monotonic clock, seconds.
    """

    def __init__(self, terminal: Terminal, clock: Clock = time.monotonic) -> None:
        self._terminal = terminal
        self._writer = _Writer(terminal.stream)
        self._pace = _Pace(clock)
        self._state: _State | None = None
        self._drawn = 0  # columns that the last drawing covers

    def start(self, step: int, num_steps: int) -> None:
        self._pace.start(step, num_steps)

    def update(self, step: int, loss: float, samples_per_s: float) -> None:
        self._state = _State(step, loss, samples_per_s)
        if self._pace.is_due(_REDRAW_S):
            self._draw(self._state)

    def note(self, text: str) -> None:
        self._writer.write("\r" + text.ljust(self._drawn) + "\n")
        self._drawn = 0
        if self._state is not None:
            self._draw(self._state)

    def close(self) -> None:
        if self._state is not None:
            self._draw(self._state)
            self._writer.write("\n")
            self._state = None
        self._terminal.close()

    def _draw(self, state: _State) -> None:
        # The last column stays free: some terminals wrap when it is written.
        line = _bar_line(state, self._pace, self._terminal.columns() - 1)
        self._writer.write("\r" + line.ljust(min(self._drawn, self._terminal.columns() - 1)))
        self._drawn = len(line)


@final
@dataclass(frozen=True)
class _State:
    step: int
    loss: float
    samples_per_s: float


@final
class _Pace:
    """How far a run is, how long it took and will take, and whether it is time to show it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._begin_s = self._shown_s = clock()
        self._first_step = 0
        self.num_steps = 0

    def start(self, step: int, num_steps: int) -> None:
        self._begin_s = self._shown_s = self._clock()
        self._first_step, self.num_steps = step, num_steps

    def is_due(self, every_s: float) -> bool:
        """Tell whether `every_s` seconds have passed since this last said so."""
        now = self._clock()
        if now - self._shown_s < every_s:
            return False
        self._shown_s = now
        return True

    def elapsed_s(self) -> float:
        return self._clock() - self._begin_s

    def remaining_s(self, step: int) -> float | None:
        """Return the seconds left at the pace so far; None before the first step."""
        num_done = step - self._first_step
        return self.elapsed_s() * (self.num_steps - step) / num_done if num_done > 0 else None


@final
class _Writer:
    """Writes to a stream until it breaks, and nothing from then on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._broken = False

    def write(self, text: str) -> None:
        if self._broken:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except UnicodeError:  # the terminal's encoding lacks a letter of this text; the next may do
            return
        except (OSError, ValueError):  # the reader went away, or the stream was closed
            self._broken = True


def _bar_line(state: _State, pace: _Pace, columns: int) -> str:
    """Return at most `columns` columns: the facts, and a bar in what they leave."""
    step, *others = _parts(state, pace)
    text = "  ".join([step, *others])
    room = min(columns - len(text) - 4, _MAX_BAR)  # 2 brackets and 2 spaces
    if room < _MIN_BAR:
        return text[:columns]
    filled = min(room * state.step // max(pace.num_steps, 1), room)
    return "  ".join([step, f"[{'#' * filled}{'.' * (room - filled)}]", *others])


def _parts(state: _State, pace: _Pace) -> list[str]:
    """Return the facts that both displays show."""
    percent = 100 * state.step // max(pace.num_steps, 1)
    remaining_s = pace.remaining_s(state.step)
    if state.step >= pace.num_steps:
        duration = f"took {_format_duration(pace.elapsed_s())}"
    else:
        duration = f"ETA {'-' if remaining_s is None else _format_duration(remaining_s)}"
    return [
        f"step {state.step}/{pace.num_steps} ({percent}%)",
        f"loss {state.loss:.4g}",
        f"{state.samples_per_s:,.0f} samples/s",
        duration,
    ]


def _format_duration(duration_s: float) -> str:
    """Return `1:02:03`, with the days before it where there are any."""
    seconds = round(duration_s)
    days, seconds = divmod(seconds, 86400)
    text = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return f"{days}d {text}" if days else text
