"""The arguments of LeptonModel: checked on each rank, and held against those of the other ranks."""

from __future__ import annotations

import operator
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lepton_mpi.comm.agreement import raise_together
from lepton_mpi.comm.contract import collective
from lepton_mpi.config.checks import check_config
from lepton_mpi.config.command_line import build_config
from lepton_mpi.config.keys import list_keys
from lepton_mpi.config.schema import Config, DataConfig, ModelConfig
from lepton_mpi.config.toml_file import check_document
from lepton_mpi.data.dataset import ArrayDataset
from lepton_mpi.data.splits import DataSplits
from lepton_mpi.data.validation import check_inputs, check_labels
from lepton_mpi.errors import ConfigError, DataError, RankMismatchError
from lepton_mpi.runtime.mpi import MPI

_T = TypeVar("_T")

# Ranks compare this much of an array, in rows spread evenly over it: a tenth of a second.
_DIGEST_NBYTES = 64 << 20


@collective("comm")
def agree_on_call(comm: MPI.Intracomm, method: str, check: Callable[[], tuple[_T, str]]) -> _T:
    """Check a call on every rank, and refuse it on all if one of them errs or was given something else.

    Collective over comm.

    Args:
        comm: all ranks.
        method: name of what is called.
        check: reads this rank's arguments; returns them, and what must be the same on all ranks.
    """
    result, call, error = None, "", None
    try:
        result, facts = check()
        call = f"{method}({facts})"
    except Exception as found:
        error = found
    raise_together(comm, error)
    calls: list[str] = comm.allgather(call)
    for rank, other in enumerate(calls):
        if other != calls[0]:
            raise RankMismatchError(
                f"rank 0 called {calls[0]}, but rank {rank} called {other}: let all ranks call the same methods in the same "
                "order, with the same arrays"
            )
    return result  # type: ignore[return-value]  # None only where check returned it


def read_settings(settings: dict[str, Any]) -> tuple[tuple[Config, tuple[int, ...]], str]:
    """Return the configuration and input shape that the arguments of LeptonModel give, and a text of them all. Local."""
    s = {name: value.item() if isinstance(value, np.generic) else value for name, value in settings.items()}
    shape = s["input_shape"]
    sizes = shape if isinstance(shape, Sequence | np.ndarray) and not isinstance(shape, str) else [shape]
    input_shape = tuple(_read_count("input_shape", size, 1) for size in sizes)
    if not input_shape:
        raise ConfigError("LeptonModel: input_shape: expected at least one dim, got (): a single number a sample is the shape (1,)")
    num_hidden = _read_count("num_layers", s["num_layers"], 1) - 1
    document: dict[str, object] = {
        "run": {"device": s["device"]},
        "grid": {name: s[name] for name in ("data", "stages", "shards")},
        "model": {"hidden_sizes": [s["hidden_size"]] * num_hidden},
        "data": {
            "format": "npy",
            "num_classes": _read_count("num_classes", s["num_classes"], 2),
            "normalise": s["normalise"],
            "max_shift": 0,
        },
        "optimizer": {"name": s["optimizer"], "lr": s["lr"], "weight_decay": s["weight_decay"], "schedule": "constant"},
        "train": {"global_batch": s["batch_size"], "seed": s["seed"]},
        "reduce": {"mode": s["reduce"]},
    }
    config = build_config(check_document(document, list_keys(), "LeptonModel"))
    check_config(replace(config, data=DataConfig(), model=ModelConfig()))  # arrays have no paths, and hidden layers may be none
    return (config, input_shape), ", ".join(f"{name}={value!r}" for name, value in s.items())


@final
class ArrayReader:
    """Checks the arrays that callers pass.

    Args:
        input_shape: shape of a sample.
        num_classes: number of classes.
        want_digests: whether arrays are to be compared with those of other ranks.
    """

    def __init__(self, input_shape: tuple[int, ...], num_classes: int, want_digests: bool) -> None:
        self._input_shape = input_shape
        self._num_classes = num_classes
        self._want_digests = want_digests

    def read_fit(self, x: ArrayLike, y: ArrayLike, epochs: object, validation_data: object) -> tuple[tuple[DataSplits, int], str]:
        """Return the checked arguments of `LeptonModel.fit`, and a text that must be the same on all ranks. Local.

        Raises:
            ConfigError: `epochs` is no number of epochs.
            DataError: an array does not fit the model.
        """
        num_epochs = _read_count("epochs", epochs, 1)
        train_set, text = self.read_samples(x, y)
        nothing = np.empty((0, *self._input_shape), np.float32), np.empty(0, np.int64)
        test_set = ArrayDataset("validation_data", *nothing, self._num_classes)
        if validation_data is not None:
            if not isinstance(validation_data, tuple | list) or len(validation_data) != 2:
                raise DataError(f"validation_data: expected a pair (x, y), got a {type(validation_data).__name__}")
            test_x, test_y = validation_data
            test_set, more_text = self.read_samples(test_x, test_y, "validation_data: ")
            text += f", validation_data: {more_text}"
        return (DataSplits(train_set, test_set), num_epochs), f"{text}, epochs={num_epochs}"

    def read_samples(self, x: ArrayLike, y: ArrayLike, place: str = "") -> tuple[ArrayDataset, str]:
        """Return inputs and labels as a checked data set, and a text that must be the same on all ranks. Local.

        Args:
            x: inputs [N, *input_shape].
            y: labels [N].
            place: what messages say before the name of the array.

        Raises:
            DataError: an array does not fit the model.
        """
        inputs = self._read_inputs(x, place)
        labels = check_labels(_read_array(y, f"{place}y"), len(inputs), self._num_classes, f"{place}y")
        return ArrayDataset(f"{place}x", inputs, labels, self._num_classes), self._describe(inputs, labels)

    def read_inputs(self, x: ArrayLike) -> tuple[ArrayDataset, str]:
        """Return inputs as a checked data set without labels, and a text that must be the same on all ranks. Local.

        Args:
            x: inputs [N, *input_shape].

        Raises:
            DataError: the array does not fit the model.
        """
        inputs = self._read_inputs(x, "")
        return ArrayDataset("x", inputs, None, 0), self._describe(inputs)

    def _read_inputs(self, x: ArrayLike, place: str) -> NDArray[Any]:
        inputs = _read_array(x, f"{place}x")
        check_inputs(inputs.shape, inputs.dtype, f"{place}x")
        if inputs.shape[1:] != self._input_shape:
            expected = ", ".join(["N", *map(str, self._input_shape)])
            raise DataError(f"{place}x: expected shape ({expected}), found {inputs.shape}: reshape it, or change the input_shape")
        return inputs

    def _describe(self, *arrays: NDArray[Any]) -> str:
        text = f"x of {arrays[0].dtype} {arrays[0].shape}"
        if not self._want_digests:
            return text
        return f"{text} and CRC-32 {' '.join(f'{_digest(array):08x}' for array in arrays)}"


def _read_count(name: str, value: object, low: int) -> int:
    try:
        count = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        count = low - 1
    if count < low:
        raise ConfigError(f"LeptonModel: {name}: expected an integer of at least {low}, got {value!r}")
    return count


def _read_array(values: ArrayLike, name: str) -> NDArray[Any]:
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: expected an array, got a {type(values).__name__} that makes none: {error}") from error


def _digest(array: NDArray[Any]) -> int:
    """Return the CRC-32 of an array, or of evenly spread rows of a large one. Local."""
    rows = array[:: max(1, array.nbytes // _DIGEST_NBYTES)]
    return zlib.crc32(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)
