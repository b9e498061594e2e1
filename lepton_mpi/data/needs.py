"""What a task needs of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from lepton_mpi.models.task import LabelKind


@final
@dataclass(frozen=True)
class DataNeeds:
    """What a task needs of a data set.

    Attributes:
        labels: kind of the labels; "none": labels in the files are not looked at.
        context: tokens of a sample, for text; other formats have a shape of their own.
    """

    labels: LabelKind = "class"
    context: int = 0
