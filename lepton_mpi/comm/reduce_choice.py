"""Which way to sum, for every size class: predicted at first, tried out, then watched."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import final

from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.cost_model import LOSSLESS, PLAIN, WORTH_IT, Machine, choose, predict

# A candidate is tried out if its prediction is within this factor of the best one.
_PLAUSIBLE = 2.0
_TRIALS = 4  # of each, of which the first warms up
# Ways that are within this factor of the best one are tried out again, at most so many times in a row: few trials tell them apart.
_CLOSE, _MOST_ROUNDS = 1.2, 4
# Of sums that are so short that more trials cost nothing, and that a single one tells little about.
_SHORT_S, _SHORT_TRIALS = 1e-3, 16
_AGREE_EVERY = 32  # sums of a class between the first looks at what they took; twice as many from one to the next
_PROBE_EVERY = 512  # sums of a class between trials of the ways not taken, and between looks at most
_FIRST_PROBE = 64  # the first such trials come sooner: what disturbed the very first ones may have passed
_WEIGHT = 0.3  # of the newest in a running mean

_log = logging.getLogger(__name__)

# Takes one number per candidate of this rank, returns the largest of all ranks.
Agree = Callable[[list[float]], list[float]]


@dataclass
class _SizeClass:
    """What is known of sums of a size class.

    Attributes:
        nbytes: of the first of them.
        predicted: seconds by way.
        chosen: the way to take.
        trials: ways to take before that.
        num_rounds: how often ways have been tried out in a row.
        num_sums: how many there were.
        settled_until: the sums up to this number go by `chosen`, without asking; who does not ask counts them.
        next_look: at how many sums ranks agree on what was measured; look_every: what is added to it then.
        next_probe: at how many sums the other ways are tried again; probe_every: what is added to it then.
        times: seconds on this rank by way, since ranks agreed last.
        means: what they agreed on; looks: how many figures each stands for.
    """

    nbytes: int
    predicted: dict[str, float]
    chosen: str
    trials: deque[str]
    num_rounds: int = 0
    num_sums: int = 0
    settled_until: int = 0
    next_look: int = _AGREE_EVERY
    look_every: int = _AGREE_EVERY
    next_probe: int = _FIRST_PROBE
    probe_every: int = _FIRST_PROBE
    times: dict[str, list[float]] = field(default_factory=dict)
    means: dict[str, float] = field(default_factory=dict)
    looks: dict[str, int] = field(default_factory=dict)


@final
class ReduceChoice:
    """Choose among plain MPI and codecs by the size of the array.

    All ranks ask for the same sizes in the same order, so that they try the same ways at the same time; what they measured
    is agreed on, and so the choice is the same on all.
    """

    def __init__(self, machine: Machine, allow: Sequence[str], agree: Agree, plain: bool = True, logs: bool = True) -> None:
        """Start with predictions only.

        Local.

        Args:
            machine: what was measured, equal on all ranks.
            allow: codecs that may be chosen.
            agree: see `Agree`; collective.
            plain: whether MPI_Allreduce may be chosen.
            logs: whether this rank logs what is chosen.
        """
        self._machine, self._agree = machine, agree
        self._level = logging.INFO if logs else logging.DEBUG
        self._candidates = [*([PLAIN] if plain else []), *allow]
        self._classes: dict[int, _SizeClass] = {}

    @collective("the ranks that agree")
    def next(self, nbytes: int) -> str:
        """Return the way for the next sum of so many bytes.

        Collective over the ranks that agree. Most calls communicate nothing.
        """
        size_class = self._classes.get(nbytes.bit_length()) or self._start_class(nbytes)
        if len(self._candidates) > 1 and not size_class.trials:
            if size_class.num_sums >= size_class.next_look:
                before = size_class.chosen
                self._decide(size_class)
                changed = size_class.chosen != before
                size_class.look_every = _AGREE_EVERY if changed else min(2 * size_class.look_every, _PROBE_EVERY)
                size_class.next_look = size_class.num_sums + size_class.look_every
                self._try_close_ones(size_class)
            if size_class.num_sums >= size_class.next_probe:
                others = [c for c in self._plausible(size_class) if c != size_class.chosen]
                size_class.num_rounds = 0
                self._try_out(size_class, others)
                size_class.probe_every = min(2 * size_class.probe_every, _PROBE_EVERY)
                size_class.next_probe = size_class.num_sums + size_class.probe_every
        size_class.num_sums += 1
        if size_class.trials:
            return size_class.trials.popleft()
        size_class.settled_until = min(size_class.next_look, size_class.next_probe)
        return size_class.chosen

    def settled(self, nbytes: int, way: str) -> int:
        """Return how many of the next sums of a size may take a way without asking; `count` tells of them. Local."""
        size_class = self._classes[nbytes.bit_length()]
        if way != size_class.chosen or way not in LOSSLESS:
            return 0
        return max(size_class.settled_until - size_class.num_sums, 0)

    def count(self, nbytes: int, seconds: float) -> None:
        """Tell of a sum that took the chosen way without asking. Local."""
        size_class = self._classes[nbytes.bit_length()]
        size_class.num_sums += 1
        size_class.times.setdefault(size_class.chosen, []).append(seconds)

    def record(self, nbytes: int, way: str, seconds: float) -> None:
        """Tell how long a sum took on this rank. Local."""
        self._classes[nbytes.bit_length()].times.setdefault(way, []).append(seconds)

    def chosen(self, nbytes: int) -> str:
        """Return what is chosen for a size now. Local."""
        size_class = self._classes.get(nbytes.bit_length())
        return size_class.chosen if size_class else choose(self._predict(nbytes))

    def _predict(self, nbytes: int) -> dict[str, float]:
        return {c: predict(self._machine, c, nbytes) for c in self._candidates}

    def _start_class(self, nbytes: int) -> _SizeClass:
        predicted = self._predict(nbytes)
        size_class = _SizeClass(nbytes, predicted, choose(predicted), deque())
        plausible = self._plausible(size_class)
        if len(plausible) > 1:
            self._try_out(size_class, plausible)
        self._classes[nbytes.bit_length()] = size_class
        _log.log(
            self._level, "all-reduce of %s: begins with %s; predicted: %s", _size(nbytes), size_class.chosen, _times(predicted)
        )
        return size_class

    def _try_out(self, size_class: _SizeClass, ways: Sequence[str]) -> None:
        expected = min(size_class.means.get(way, size_class.predicted[way]) for way in ways) if ways else 0.0
        trials = _SHORT_TRIALS if expected < _SHORT_S else _TRIALS
        size_class.trials.extend(way for _ in range(trials) for way in ways)
        size_class.settled_until = 0
        size_class.next_look = size_class.num_sums + len(size_class.trials)

    def _try_close_ones(self, size_class: _SizeClass) -> None:
        """Try ways out again that measured nearly alike. Local; alike on all ranks."""
        limit = _CLOSE * min(size_class.means.values(), default=0.0)
        close = [c for c in self._plausible(size_class) if size_class.means.get(c, limit) < limit]
        if len(close) > 1 and size_class.num_rounds < _MOST_ROUNDS:
            size_class.num_rounds += 1
            self._try_out(size_class, close)

    def _plausible(self, size_class: _SizeClass) -> list[str]:
        predicted = size_class.predicted
        expected = {c: size_class.means.get(c, t) for c, t in predicted.items()}
        limit = _PLAUSIBLE * min(expected.values())
        # Compression must be expected to pay, too, so that a lucky measurement alone does not choose it.
        lossless = predicted.get("exact", predicted.get(PLAIN))
        pays = {c for c in predicted if lossless is None or predicted[c] < WORTH_IT * lossless}
        return [c for c in self._candidates if c in LOSSLESS or (c in pays and expected[c] <= limit)]

    def _decide(self, size_class: _SizeClass) -> None:
        """Agree on what the ways took, and choose again."""
        own = [_median(size_class.times.get(c, [])) for c in self._candidates]
        size_class.times.clear()
        for candidate, seconds in zip(self._candidates, self._agree(own), strict=True):
            if seconds > 0:
                before, looks = size_class.means.get(candidate, seconds), size_class.looks.get(candidate, 0)
                size_class.means[candidate] = before + max(_WEIGHT, 1 / (looks + 1)) * (seconds - before)
                size_class.looks[candidate] = looks + 1
        if not size_class.means:
            return
        chosen = choose(size_class.means)
        if chosen != size_class.chosen or size_class.num_sums <= 2 * _AGREE_EVERY:
            _log.log(
                self._level,
                "all-reduce of %s: takes %s; predicted: %s; measured: %s",
                _size(size_class.nbytes), chosen, _times(size_class.predicted), _times(size_class.means),
            )  # fmt: skip
        size_class.chosen = chosen


def _median(times: Sequence[float]) -> float:
    """Return the median without the first, which may have warmed up; 0 for none."""
    kept = sorted(times[1:] or times)
    return kept[len(kept) // 2] if kept else 0.0


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e6:.3g} MB" if nbytes >= 10**6 else f"{nbytes / 1e3:.3g} KB"


def _times(seconds: dict[str, float]) -> str:
    return ", ".join(f"{c} {1e3 * t:.3g} ms" for c, t in seconds.items())
