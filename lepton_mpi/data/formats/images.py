"""A folder of pictures, one subfolder a class, decoded when they are asked for.

The layout is the one that torchvision calls ImageFolder: FOLDER/CLASS/NAME.png. Classes are numbered in the order of
their names. Pictures may lie deeper in the subfolder of a class; hidden files, links, and files without a suffix of
pictures are passed over. In memory is what names the files, not the pictures.
"""

from __future__ import annotations

import os
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.data.dataset import Dataset, take_labels
from lepton_mpi.data.formats.image_decoding import IMAGE_SUFFIXES, ImageDecoder
from lepton_mpi.data.validation import check_file, list_folder
from lepton_mpi.errors import DataError
from lepton_mpi.models.task import LabelKind

_TRAIN_NAME, _TEST_NAMES = "train", ("test", "val")


@final
class ImageFolder(Dataset):
    """Pictures of a folder, uint8[3, H, W] or [H, W]; the labels are in memory.

    Args:
        path: folder with one subfolder a class; where labels are not required, also a folder of pictures, or one picture.
        decoder: size and colours; without a size all pictures must be as large as the first.
        class_names: the classes in the order of their numbers; None: the sorted names of the subfolders.
        num_classes: number of classes; 0: as many as there are names.
        labels_required: whether pictures without a class are an error.
        label_kind: what labels are read as: classes, their numbers as values, or not at all.

    Attributes:
        class_names: the name of each class.

    Raises:
        DataError: there are no pictures, a subfolder is none of `class_names`, there are more classes than
            `num_classes`, or the first picture is damaged.
    """

    def __init__(
        self,
        path: str,
        decoder: ImageDecoder,
        class_names: list[str] | None = None,
        num_classes: int = 0,
        *,
        labels_required: bool = True,
        label_kind: LabelKind = "class",
    ) -> None:
        found = [] if os.path.isfile(path) else list_classes(path)
        if class_names is not None and not labels_required and not set(found) & set(class_names):
            found = []  # subfolders that are no classes
        if not found and labels_required and label_kind != "none":
            raise DataError(f"{path}: expected a folder with one subfolder of pictures a class, found none: check data.path")
        self.class_names = found if class_names is None else class_names
        unknown = sorted(set(found) - set(self.class_names))
        if unknown:
            raise DataError(f"{path}: expected classes among those of the training set, found {unknown[0]!r}: rename the folder")
        if num_classes and len(self.class_names) > num_classes:
            raise DataError(
                f"{path}: expected {num_classes} classes, found subfolders for {len(self.class_names)}: set data.num_classes"
            )
        self._decoder, labels = decoder, []
        self._paths: list[str] = []
        for name in found:
            paths = _list_pictures(os.path.join(path, name))
            self._paths += paths
            labels += [self.class_names.index(name)] * len(paths)
        if not found:
            self._paths = _list_pictures(path)
        if not self._paths:
            raise DataError(f"{path}: expected pictures ({', '.join(IMAGE_SUFFIXES)}), found none: check data.path")
        self._labels: NDArray[Any] | None = None
        if found and label_kind != "none":
            self._labels = np.array(labels, np.float32 if label_kind == "value" else np.int32)
        self._shape = self._decode(self._paths[0]).shape
        name = os.path.basename(os.path.normpath(path))
        count = 0 if self._labels is None else num_classes or len(self.class_names)
        super().__init__(name, len(self._paths), self._shape, count, (), "none" if self._labels is None else label_kind)

    def read_raw(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return pictures, uint8[B, *input_shape]. Local.

        Raises:
            DataError: a picture is damaged, or not as large as the first.
        """
        pictures = np.empty((len(indices), *self._shape), np.uint8)
        for row, index in enumerate(indices):
            path = self._paths[index]
            picture = self._decode(path)
            if picture.shape != self._shape:
                height, width = self._shape[-2:]
                raise DataError(
                    f"{path}: expected a picture of {height} x {width} pixels as {self._paths[0]} has, found "
                    f"{picture.shape[-2]} x {picture.shape[-1]}: set data.image_size to scale all pictures"
                )
            pictures[row] = picture
        return pictures

    def read_labels(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        return take_labels(self._labels, indices)

    def _decode(self, path: str) -> NDArray[np.uint8]:
        check_file(path)
        with open(path, "rb") as file:
            return self._decoder.decode(file, path)


def find_image_parts(path: str) -> tuple[str, str]:
    """Return the folders of the training and the test set: those in `path`, else `path` and nothing. Local.

    A folder that has a subfolder train, and one called test or val, holds both sets.
    """
    train = os.path.join(path, _TRAIN_NAME)
    for name in _TEST_NAMES:
        test = os.path.join(path, name)
        if os.path.isdir(train) and os.path.isdir(test):
            return train, test
    return path, ""


def list_classes(path: str) -> list[str]:
    """Return the sorted names of the subfolders of a folder, without hidden ones. Local.

    Raises:
        DataError: it cannot be read.
    """
    return [name for name in list_folder(path) if name[0] != "." and os.path.isdir(os.path.join(path, name))]


def _list_pictures(path: str) -> list[str]:
    """Return the files of pictures in a folder and below it, sorted; of a file the file itself."""
    if not os.path.isdir(path):
        check_file(path)
        return [path]
    found = []
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        for name in sorted(names):
            file = os.path.join(folder, name)
            if name[0] != "." and name.lower().endswith(IMAGE_SUFFIXES) and not os.path.islink(file):
                found.append(file)
    return found
