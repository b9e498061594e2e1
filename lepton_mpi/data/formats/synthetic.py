"""Made data of several kinds, for recipes and tests: sample i is drawn when it is asked for, from i alone.

Nothing is stored, so that there may be any number of samples, and every run on every grid sees the same ones. Each kind
can be learnt: a model that fits it does much better than one that does not look at the inputs.

Shapes: B samples asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.data.dataset import UNLABELLED, Dataset
from lepton_mpi.data.formats.synthetic_images import CellImages, WavyImages
from lepton_mpi.data.formats.synthetic_kind import SyntheticKind
from lepton_mpi.data.formats.synthetic_tables import Blobs, Credit, LinearRegression, Ratings, TopicTokens
from lepton_mpi.errors import ConfigError
from lepton_mpi.models.task import LabelKind

_KINDS: dict[str, Callable[[tuple[int, ...], int], SyntheticKind]] = {
    "images": WavyImages,
    "blobs": Blobs,
    "regression": LinearRegression,
    "segmentation": CellImages,
    "tokens": TopicTokens,
    "ratings": Ratings,
    "credit": Credit,
}

_KINDS_OF_CLASSES = ("images", "blobs", "segmentation", "tokens", "credit")


@final
class SyntheticDataset(Dataset):
    """Samples of a kind, drawn on demand.

    Args:
        kind: `data.synthetic`.
        num_samples: how many samples there are; the first n of more samples are the n of fewer.
        shape: `data.synthetic_shape`; empty: the kind's own.
        num_classes: number of classes; 0: the kind's own, and 2 where they are to be values, as yes-or-no answers are.
        label_kind: what the labels should be; "none": they are left out. Classes are given as values where values are
            asked for.

    Raises:
        ConfigError: the kind has no such shape or number of classes, or its labels are no classes.
    """

    def __init__(
        self,
        kind: str,
        num_samples: int,
        shape: tuple[int, ...] = (),
        num_classes: int = 0,
        *,
        label_kind: LabelKind = "class",
    ) -> None:
        is_binary = label_kind == "value" and kind in _KINDS_OF_CLASSES
        self._kind = made = _KINDS[kind](shape, num_classes or 2 * is_binary)
        if label_kind == "class" and not made.num_classes:
            raise ConfigError(f"data.synthetic {kind}: its labels are values, no classes: choose a task for values in model.task")
        label_shape = () if label_kind == "none" else made.label_shape
        super().__init__(f"synthetic {kind}", num_samples, made.input_shape, made.num_classes, label_shape, label_kind)

    def read_raw(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        return self._kind.inputs(indices)

    def read_labels(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        if self.label_kind == "none":
            return np.full(len(indices), UNLABELLED, np.int64)
        return self._kind.labels(indices).astype(np.float32 if self.label_kind == "value" else np.int64, copy=False)
