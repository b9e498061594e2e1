"""docs/data.md names every format, key and metric, and says what the code has."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from lepton_mpi.config.augmentation import parse_augmentation
from lepton_mpi.config.command_line import parse_arguments
from lepton_mpi.config.schema import DataConfig
from lepton_mpi.data import prefetch
from lepton_mpi.data.formats.synthetic import SyntheticDataset
from lepton_mpi.data.streams.records import END_FILE, END_SUFFIX, SPOOL_SUFFIX
from lepton_mpi.models.task import TASKS
from lepton_mpi.monitor.binary_metrics import BinarySums
from lepton_mpi.monitor.metrics import ClassificationSums, LanguageModelSums, RegressionSums, SegmentationSums
from lepton_mpi.monitor.ranking_metrics import RankingSums

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "data.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
KEYS = {field.name: field for field in dataclasses.fields(DataConfig)}

METRICS: dict[str, tuple[str, ...]] = {
    "classification": ClassificationSums(6).names,
    "segmentation": SegmentationSums(2).names,
    "language_model": LanguageModelSums.names,
    "masked_language_model": LanguageModelSums.names,
    "regression": RegressionSums.names,
    "binary": BinarySums.names,
    "ranking": RankingSums.names,
}


def rows(section: str) -> list[list[str]]:
    """Return the cells of the lines of a section's tables."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in SECTIONS[section].splitlines() if line[:1] == "|"]


def named(section: str, column: int = 0) -> list[str]:
    """Return what a column of a section's tables names in code style."""
    return [name for cells in rows(section) for name in re.findall(r"`([\w.]+)`", cells[column])]


def choices(key: str) -> tuple[str, ...]:
    found: tuple[str, ...] = KEYS[key].metadata["choices"]
    return found


def test_formats() -> None:
    shown = named("Formats")
    formats, kinds = shown[1 : shown.index("data.synthetic")], shown[shown.index("data.synthetic") + 1 :]
    assert sorted(formats) == sorted(choices("format"))
    assert sorted(kinds) == sorted(choices("synthetic"))


def test_keys() -> None:
    assert sorted(named("All keys of [data]")) == sorted(KEYS)


def test_keys_are_for_formats_that_exist() -> None:
    for cells in rows("All keys of [data]")[1:]:
        if not cells[1].startswith(("all", "any", "---")):
            assert set(cells[1].split(", ")) <= set(choices("format"))


def test_metrics() -> None:
    shown: dict[str, list[str]] = {}
    tasks: list[str] = []
    for task, names, _ in rows("Metrics"):
        tasks = task.split(", ") if task else tasks
        for one in tasks:
            shown[one] = [*shown.get(one, []), *re.findall(r"`(\w+)`", names)]
    assert METRICS.keys() == TASKS.keys()
    for task, metrics in METRICS.items():
        assert tuple(shown[task]) == metrics


def test_labels_of_tasks() -> None:
    shown = {task: cells[0] for cells in rows("Labels") for task in cells[1].split(", ") if task in TASKS}
    assert shown == {task.name: task.labels for task in TASKS.values()}


def test_augmentation() -> None:
    entries = [entry for cells in rows("Augmentation")[1:] for entry in re.findall(r"`(.*?)`", cells[0])]
    assert {entry.partition(":")[0] for entry in entries} == {"flip", "crop", "cutout", "mixup"}
    for entry in entries:
        parse_augmentation([entry])


@pytest.mark.parametrize("kind", sorted(set(choices("synthetic")) - {"ratings"}))
def test_made_samples(kind: str) -> None:
    made = SyntheticDataset(kind, 10, label_kind="value" if kind == "regression" else "class")
    said = dict(cells[:2] for cells in rows("Formats"))[f"`{kind}`"]  # of two tables the later one
    assert [int(size) for size in re.findall(r"\d+", said)[: len(made.input_shape)]] == list(made.input_shape)


@pytest.mark.parametrize(
    "text",
    [
        f"`<path>{SPOOL_SUFFIX}`",
        f"`<path>{END_SUFFIX}`",
        f"`{END_FILE}`",
        f"`data.stream_idle_s` ({DataConfig().stream_idle_s:g})",
        f"is held out ({DataConfig().test_fraction:g})",
        f"took more than {1000 * prefetch._WORTHWHILE_S:g} ms",
    ],
)
def test_constants(text: str) -> None:
    assert text in PAGE.replace("\n", " ")


def commands() -> list[list[str]]:
    """Return the arguments of the training commands that the page shows."""
    blocks = "\n".join(re.findall(r"^```\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    return [re.findall(r'"[^"]*"|\S+', line.split("lepton_mpi.train", 1)[1]) for line in blocks.splitlines() if ".train " in line]


@pytest.mark.parametrize("arguments", commands(), ids=lambda words: words[1])
def test_commands_are_accepted(arguments: list[str]) -> None:
    parse_arguments([word.strip('"') for word in arguments])


def test_packages() -> None:
    extras = re.findall(r"pip install '\.\[(\w+)\]'", PAGE)
    project = (ROOT / "pyproject.toml").read_text()
    assert extras == ["images", "parquet"]
    assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras)
