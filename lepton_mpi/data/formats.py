"""From the name of a format to a data set."""

from __future__ import annotations

from lepton_mpi.config.schema import DataConfig
from lepton_mpi.data.csv import open_csv
from lepton_mpi.data.dataset import Dataset
from lepton_mpi.data.digits import open_digits
from lepton_mpi.data.hdf5 import Hdf5Dataset
from lepton_mpi.data.idx import open_idx
from lepton_mpi.data.needs import DataNeeds
from lepton_mpi.data.npy import open_npy
from lepton_mpi.data.npz import open_npz
from lepton_mpi.data.text import open_standard_library, open_text
from lepton_mpi.data.tokens import open_tokens
from lepton_mpi.data.validation import check_file, guess_format
from lepton_mpi.errors import ConfigError, DataError

_TEXT_FORMATS = ("text", "pystdlib", "tokens")


def open_format(
    name: str, path: str, labels_path: str, config: DataConfig, needs: DataNeeds, num_classes: int, *, labels_required: bool = True
) -> Dataset:
    """Open data of a named format. Local.

    Args:
        name: a `data.format`.
        path: the file or folder, where the format reads one.
        labels_path: file of the labels, where the format has one.
        config: the `data` section: names of columns and arrays, type of tokens.
        needs: what the task needs of the data.
        num_classes: number of classes; 0: one more than the largest label; for files of tokens, the vocabulary.
        labels_required: whether a file that should hold labels and does not is an error.

    Raises:
        ConfigError: there is no such format, or text without a context.
        DataError: a file is missing or malformed.
    """
    if name in _TEXT_FORMATS:
        return _open_text_format(name, path, config, needs, num_classes)
    kind = needs.labels
    named = path, config.inputs_name, config.labels_name, num_classes
    match name:
        case "digits":
            return open_digits(num_classes, label_kind=kind)
        case "idx":
            return open_idx(path, labels_path, num_classes, label_kind=kind)
        case "npy":
            return open_npy(path, labels_path, num_classes, label_kind=kind)
        case "npz":
            return open_npz(*named, labels_required=labels_required, label_kind=kind)
        case "csv":
            return open_csv(path, config.label_column, num_classes, labels_required=labels_required, label_kind=kind)
        case "hdf5":
            return Hdf5Dataset(*named, labels_required=labels_required, label_kind=kind)
    raise ConfigError(
        f"data.format: expected digits, idx, npz, npy, csv, hdf5, tokens, text or pystdlib, found {name!r}: choose one of them"
    )


def open_unlabelled(path: str, format_hint: str, config: DataConfig, needs: DataNeeds, num_classes: int) -> Dataset:
    """Open a file whose labels may be missing, in a format that is named or told from the file. Local.

    Args:
        path: the file or folder.
        format_hint: a `data.format`; empty: told from the file.
        config: the `data` section.
        needs: what the task needs of the data.
        num_classes: number of classes; 0: one more than the largest label.

    Raises:
        ConfigError: there is no such format, or text without a context.
        DataError: the format cannot be told, or the file is missing or malformed.
    """
    name: str | None = format_hint
    if format_hint not in ("digits", *_TEXT_FORMATS):
        check_file(path)
        name = format_hint or guess_format(path)
    if name is None:
        raise DataError(
            f"{path}: expected one of idx, npz, npy, csv, hdf5, found neither their magic number nor name: give the format"
        )
    return open_format(name, path, "", config, needs, num_classes, labels_required=False)


def _open_text_format(name: str, path: str, config: DataConfig, needs: DataNeeds, vocabulary: int) -> Dataset:
    if needs.labels == "value":
        raise DataError(f"data.format {name}: text has tokens, not values, as labels: choose a language model in model.task")
    if name == "tokens":
        return open_tokens(path, config.token_type, needs.context, vocabulary)
    return open_text(path, needs.context, vocabulary) if name == "text" else open_standard_library(needs.context, vocabulary)
