"""Tasks: what a model is trained to do, hence what labels it needs and which loss it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from lepton_mpi.errors import ConfigError

# What a label is: a class number (int64), values (float32), or nothing.
LabelKind: TypeAlias = Literal["class", "value", "none"]


@dataclass(frozen=True)
class Task:
    """What a model is trained to do.

    Attributes:
        name: what the configuration calls it.
        labels: kind of the labels in the data. Tasks on text make theirs from the text itself.
        describes: one line for the documentation.
    """

    name: str
    labels: LabelKind
    describes: str


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("classification", "class", "one class a sample"),
        Task("segmentation", "class", "one class a pixel"),
        Task("language_model", "class", "the next token at every position"),
        Task("masked_language_model", "none", "the tokens that were masked"),
        Task("regression", "value", "one or more real numbers a sample"),
        Task("binary", "value", "one or more yes-or-no answers a sample, labels 0 to 1"),
        Task("ranking", "none", "the first column's user prefers the second column's item to one drawn at random"),
    )
}


def choose_task(name: str, family: str, supported: tuple[str, ...]) -> Task:
    """Return the task that a configuration names for a family; "auto": the family's first. Local.

    Raises:
        ConfigError: the family cannot do it.
    """
    if name == "auto":
        return TASKS[supported[0]]
    if name not in supported:
        raise ConfigError(f"model.task: the family {family} can do {', '.join(supported)}, got {name!r}")
    return TASKS[name]
