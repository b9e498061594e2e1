"""docs/models.md names everything there is, with the defaults that the code has."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from lepton_mpi.config.schema import ModelConfig
from lepton_mpi.models.family import DataShape, ModelSpec
from lepton_mpi.models.registry import BUILT_IN, find_family
from lepton_mpi.models.task import TASKS, choose_task
from lepton_mpi.train.objective import make_metrics

PAGE = (Path(__file__).parents[3] / "docs" / "models.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))

TEXT = DataShape((11,), num_classes=37)
SAMPLES = {
    "linear": DataShape((8, 8), 10),
    "mlp": DataShape((8, 8), 10),
    "resnet": DataShape((8, 8), 10),
    "unet": DataShape((16, 8), 3, (16, 8)),
    "gpt": TEXT,
    "llama": TEXT,
    "bert": DataShape((11,), 2, (), (37,) * 11),
    "recommender": DataShape((2,), 0, (1,), (7, 5)),
}


def declare(name: str, data: DataShape, **keys: Any) -> ModelSpec:
    config, family = ModelConfig(name, **keys), find_family(name)
    return family.declare(config, choose_task(config.task, name, family.tasks), data)


def rows(section: str) -> list[list[str]]:
    """Return the cells of the lines of a section's tables."""
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in SECTIONS[section].splitlines() if line[:1] == "|"]


@pytest.mark.parametrize("name", BUILT_IN)
def test_families(name: str) -> None:
    assert name in SECTIONS
    overview = re.search(rf"^\| \[`{name}`\]\(#{name}\) \|.*\| (.*) \|$", PAGE, re.MULTILINE)
    assert overview is not None
    assert tuple(overview[1].split(", ")) == find_family(name).tasks


@pytest.mark.parametrize("name", BUILT_IN)
def test_parameters_are_named(name: str) -> None:
    model = declare(name, SAMPLES[name])
    tops = {re.split(r"\d*\.", spec.name)[0] for spec in model.parameters}
    inherited = SECTIONS["gpt"] if name in ("llama", "bert") else ""
    missing = [top for top in tops if not re.search(rf"`{top}[.\d]", SECTIONS[name] + inherited)]
    assert not missing


def test_tasks() -> None:
    shown = {cells[0].strip("`"): cells for cells in rows("Tasks") if cells[0].startswith("`")}
    assert shown.keys() == TASKS.keys()
    found = {}
    for name, data in SAMPLES.items():
        for task in find_family(name).tasks:
            values = DataShape(data.input_shape, 0, (1,)) if task in ("regression", "binary") and name != "recommender" else data
            found[task] = make_metrics(declare(name, TEXT if task == "masked_language_model" else values, task=task)).names
    for task, names in found.items():
        assert tuple(re.sub(r" \(.*?\)", "", shown[task][-1].rstrip(" |")).split(", ")) == names


def test_keys() -> None:
    named = [key for cells in rows("All keys of [model]") for key in re.findall(r"`(\w+)`", cells[0])]
    assert sorted(named) == sorted(field.name for field in dataclasses.fields(ModelConfig))


@pytest.mark.parametrize("name", BUILT_IN)
def test_defaults(name: str) -> None:
    """What the page says a key is by default is what declaring it makes."""
    model = declare(name, SAMPLES[name])
    said = {}
    inherited = rows("gpt") if name in ("llama", "bert") else []
    for cells in (*inherited, *rows(name)):
        for key in re.findall(r"`(\w+)`", cells[0]):
            said[key] = cells[1]
    spelled: dict[str, dict[str, Any]] = {
        "gpt": {"intermediate_size": 4 * 384, "context": 256, "vocab_size": 37, "tied": "yes"},
        "llama": {"intermediate_size": 1024, "context": 256, "vocab_size": 37, "tied": "no", "num_kv_heads": 6},
        "bert": {"intermediate_size": 4 * 384, "context": 256, "vocab_size": 37, "tied": "yes"},
        "resnet": {"depth": 20, "width": 16},
        "recommender": {"num_users": 7, "num_items": 5},
    }
    keys: dict[str, Any] = {}
    for key, text in said.items():
        number = re.fullmatch(r"0: ([0-9e.-]+)", text)
        if number:
            keys[key] = type(getattr(ModelConfig(), key))(float(number[1]))
    keys |= spelled.get(name, {})
    assert declare(name, SAMPLES[name], **keys) == model
    for key, text in said.items():
        default = getattr(ModelConfig(), key)
        start = f'"{default}"' if isinstance(default, str) else str(list(default) if isinstance(default, tuple) else default)
        assert text.startswith(start.removesuffix(".0")), key
