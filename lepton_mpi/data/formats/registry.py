"""From the name of a format to a data set.

The less usual formats are imported when they are asked for: where ranks outnumber cores, what one module costs at start is
paid by every rank in turn.
"""

from __future__ import annotations

import os
from dataclasses import fields

from lepton_mpi.config.schema import DataConfig
from lepton_mpi.data.dataset import Dataset
from lepton_mpi.data.formats.csv import open_csv
from lepton_mpi.data.formats.digits import open_digits
from lepton_mpi.data.formats.hdf5 import Hdf5Dataset
from lepton_mpi.data.formats.idx import open_idx
from lepton_mpi.data.formats.npy import open_npy
from lepton_mpi.data.formats.npz import open_npz
from lepton_mpi.data.formats.text import open_standard_library, open_text
from lepton_mpi.data.formats.tokens import open_tokens
from lepton_mpi.data.needs import DataNeeds
from lepton_mpi.data.storage.packed import is_packed, open_packed
from lepton_mpi.data.validation import check_file, guess_format
from lepton_mpi.errors import ConfigError, DataError
from lepton_mpi.models.task import LabelKind

_TEXT_FORMATS = ("text", "pystdlib", "tokens")
_CIFAR_FORMATS = ("cifar10", "cifar100")
# Formats whose path may be a folder, a pattern, or nothing; they look themselves.
_FORMATS_WITHOUT_ONE_FILE = ("digits", "synthetic", "packed", "images", "webdataset", "movielens", *_CIFAR_FORMATS, *_TEXT_FORMATS)


def locate_parts(config: DataConfig) -> tuple[str, str]:
    """Return the paths of the training and of the test set; the latter is empty where there is none. Local.

    A folder may hold both: then `data.test_path` need not be given.
    """
    path, test_path = config.path, config.test_path
    if config.format in _CIFAR_FORMATS:
        from lepton_mpi.data.formats.cifar import find_cifar_test_file

        test_folder = test_path or path
        return path, find_cifar_test_file(config.format, test_folder) or test_path
    if config.format == "images":
        from lepton_mpi.data.formats.images import find_image_parts

        train, test = find_image_parts(path)
        return train, test_path or test
    return path, test_path


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
        case "parquet":
            from lepton_mpi.data.formats.parquet import ParquetDataset

            return ParquetDataset(path, config.label_column, num_classes, labels_required=labels_required, label_kind=kind)
        case "hdf5":
            return Hdf5Dataset(*named, labels_required=labels_required, label_kind=kind)
        case "cifar10" | "cifar100":
            from lepton_mpi.data.formats.cifar import CifarDataset

            return CifarDataset(name, path, num_classes, label_kind=kind)
        case "movielens":
            from lepton_mpi.data.formats.movielens import open_movielens

            return open_movielens(path, num_classes, numbering_path=config.path, label_kind=kind)
        case "images":
            return _open_images(path, config, num_classes, labels_required, kind)
        case "webdataset":
            from lepton_mpi.data.formats.webdataset import WebDataset

            size, mode = config.image_size, config.image_mode
            return WebDataset(path, size, mode, num_classes, labels_required=labels_required, label_kind=kind)
        case "synthetic":
            from lepton_mpi.data.formats.synthetic import SyntheticDataset

            return SyntheticDataset(config.synthetic, config.num_samples, config.synthetic_shape, num_classes, label_kind=kind)
        case "packed":
            return open_packed(path, num_classes, labels_required=labels_required, label_kind=kind, context=needs.context)
        case "stream":
            raise ConfigError("data.format stream: only training takes what is still growing: read its files with data.format csv")
    raise ConfigError(f"data.format: expected one of {', '.join(_choices())}, found {name!r}: choose one of them")


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
    if not format_hint and is_packed(path):
        name = "packed"
    elif not format_hint and os.path.isdir(path):
        name = guess_format(path)
    elif format_hint not in _FORMATS_WITHOUT_ONE_FILE:
        check_file(path)
        name = format_hint or guess_format(path)
    if name is None and config.format in ("images", *_CIFAR_FORMATS):
        name = config.format  # which have no mark; what a model was trained on is what it predicts on
    if name is None:
        raise DataError(
            f"{path}: expected one of idx, npz, npy, csv, hdf5, parquet, movielens, webdataset, found neither their magic number "
            "nor name: give the format"
        )
    return open_format(name, path, "", config, needs, num_classes, labels_required=False)


def _open_text_format(name: str, path: str, config: DataConfig, needs: DataNeeds, vocabulary: int) -> Dataset:
    if needs.labels == "value":
        raise DataError(f"data.format {name}: text has tokens, not values, as labels: choose a language model in model.task")
    if name == "tokens":
        return open_tokens(path, config.token_type, needs.context, vocabulary)
    return open_text(path, needs.context, vocabulary) if name == "text" else open_standard_library(needs.context, vocabulary)


def _open_images(path: str, config: DataConfig, num_classes: int, labels_required: bool, kind: LabelKind) -> Dataset:
    """Open a folder of pictures, with the classes of the training set."""
    from lepton_mpi.data.formats.image_decoding import ImageDecoder
    from lepton_mpi.data.formats.images import ImageFolder, list_classes

    decoder = ImageDecoder(config.image_size, config.image_mode)
    train = locate_parts(config)[0] if config.format == "images" else ""
    class_names = list_classes(train) if os.path.isdir(train) else None
    if class_names is None and num_classes and os.path.isdir(path) and kind != "none":
        # The training set is gone: its classes are known only if all of them are here.
        found = len(list_classes(path))
        if found not in (0, num_classes):
            raise DataError(
                f"{path}: expected subfolders for all {num_classes} classes, as the training set in {train!r} is not "
                f"there to tell their order, found {found}: add empty subfolders, or give the training set"
            )
    return ImageFolder(path, decoder, class_names, num_classes, labels_required=labels_required, label_kind=kind)


def _choices() -> tuple[str, ...]:
    choices: tuple[str, ...] = next(field for field in fields(DataConfig) if field.name == "format").metadata["choices"]
    return choices
