"""Tar archives of samples, whose members are read in place.

The members of a sample stand next to each other and share a key, their path up to the first dot of the file name:
`0001.jpg`, `0001.cls`. Inputs are `.npy`, or pictures `.jpg`, `.jpeg`, `.png`; labels `.cls`, a number as text, or
`.json`, an object whose "label" is a number or a list of numbers. Other members are passed over.

Source: Aizman, Maltby, Breuel, "High performance I/O for large scale deep learning", IEEE Big Data 2019.

In memory are 20 bytes a sample and the labels; the archives are memory-mapped, and a sample may be read at any place.
"""

from __future__ import annotations

import glob
import io
import json
import mmap
import os
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.data.dataset import Dataset, take_labels
from lepton_mpi.data.formats.image_decoding import ImageDecoder
from lepton_mpi.data.formats.tar import TarMember, list_members
from lepton_mpi.data.validation import check_file, check_inputs, count_classes, list_folder, read_label_array
from lepton_mpi.errors import DataError
from lepton_mpi.models.task import LabelKind

_INPUTS = {"npy": "npy", "jpg": "picture", "jpeg": "picture", "png": "picture"}
_LABELS = ("cls", "json")
_LARGEST_LABEL = 1 << 20  # bytes of a label


@final
class WebDataset(Dataset):
    """Samples in tar archives, one shape for all.

    Args:
        path: an archive, a folder of archives *.tar, or a pattern (`*`, `?`, `[]`) of their names.
        image_size: size of pictures, as `ImageDecoder` takes it.
        image_mode: colours of pictures, as `ImageDecoder` takes them.
        num_classes: number of classes; 0: one more than the largest label.
        labels_required: whether samples without labels are an error.
        label_kind: what the labels are; "none": they are not looked at.

    Raises:
        ConfigError: there are pictures, and Pillow is not installed.
        DataError: an archive is missing or malformed, a sample has no input or two, only some samples have labels, or a
            label is wrong.
    """

    def __init__(
        self,
        path: str,
        image_size: tuple[int, ...] = (),
        image_mode: str = "rgb",
        num_classes: int = 0,
        *,
        labels_required: bool = True,
        label_kind: LabelKind = "class",
    ) -> None:
        self._paths = find_shards(path)
        self._archives = [_map_archive(shard) for shard in self._paths]
        index = _Index(label_kind)
        for number, archive in enumerate(self._archives):
            index.add_archive(number, archive, self._paths[number])
        if not index.shards:
            raise DataError(f"{path}: expected samples with an input (.{', .'.join(_INPUTS)}), found none: check data.path")
        self._shards, self._offsets = np.array(index.shards, np.int32), np.array(index.offsets, np.int64)
        self._sizes, self._is_picture = np.array(index.sizes, np.int64), index.input_kind == "picture"
        self._decoder = ImageDecoder(image_size, image_mode) if self._is_picture else None
        first = self._decode(0)
        check_inputs((len(self._sizes), *first.shape), first.dtype, self._place(0))
        self._shape, self._dtype = first.shape, first.dtype
        labels = index.labels_of_all(labels_required)
        if labels is not None:
            labels = read_label_array(labels, label_kind, len(self._sizes), num_classes, path)
        name = os.path.basename(os.path.normpath(path))
        shape = () if labels is None else labels.shape[1:]
        kind: LabelKind = "none" if labels is None else label_kind
        self._labels = labels
        super().__init__(name, len(self._sizes), self._shape, count_classes(labels, num_classes), shape, kind)

    def read_raw(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """Return inputs in their dtype, [B, *input_shape]. Local.

        Raises:
            DataError: an input is damaged, or of another shape or dtype than the first.
        """
        inputs = np.empty((len(indices), *self._shape), self._dtype)
        for row, index in enumerate(indices):
            found = self._decode(int(index))
            if found.shape != self._shape or found.dtype != self._dtype:
                hint = "set data.image_size" if self._is_picture else "store arrays of one shape and type"
                raise DataError(
                    f"{self._place(int(index))}: expected an input of shape {self._shape} and type {self._dtype} as the first is, "
                    f"found {found.shape} and {found.dtype}: {hint}"
                )
            inputs[row] = found
        return inputs

    def read_labels(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        return take_labels(self._labels, indices)

    def _place(self, index: int) -> str:
        return f"{self._paths[self._shards[index]]}, offset {self._offsets[index]}"

    def _decode(self, index: int) -> NDArray[Any]:
        archive, offset, size = self._archives[self._shards[index]], int(self._offsets[index]), int(self._sizes[index])
        content = archive[offset : offset + size]
        if self._decoder is not None:
            return self._decoder.decode(io.BytesIO(content), self._place(index))
        return _decode_npy(content, self._place(index))


def find_shards(path: str) -> list[str]:
    """Return the archives that a path stands for, sorted. Local.

    Raises:
        DataError: there are none.
    """
    if os.path.isdir(path):
        shards = [os.path.join(path, name) for name in list_folder(path) if name.endswith(".tar")]
    elif glob.has_magic(path) and not os.path.exists(path):
        shards = sorted(glob.glob(path))
    else:
        return [path]
    if not shards:
        raise DataError(f"{path}: expected tar archives, found none: check data.path")
    return shards


class _Index:
    """Where the inputs of all samples lie, and their labels.

    Args:
        label_kind: what the labels are; "none": they are not looked at.
    """

    def __init__(self, label_kind: LabelKind) -> None:
        self._kind = label_kind
        self.input_kind = ""
        self.shards: list[int] = []
        self.offsets: list[int] = []
        self.sizes: list[int] = []
        self._labels: list[Any] = []
        self._unlabelled = ""  # a sample without a label
        self._label_place = ""  # the sample with the first label

    def add_archive(self, number: int, archive: mmap.mmap, path: str) -> None:
        """Add the samples of an archive. Local."""
        key, members, seen = "", dict[str, TarMember](), set[str]()
        for member in list_members(archive, path):
            folder, _, file = member.name.rpartition("/")
            stem, _, suffix = file.partition(".")
            if not stem:
                continue  # a hidden file, such as those that macOS adds
            sample = f"{folder}/{stem}"
            if sample != key:
                if sample in seen:
                    raise DataError(
                        f"{path}, offset {member.offset}: expected the members of sample {stem!r} next to each other, found "
                        f"{member.name!r} apart from them: sort the names when the archive is made"
                    )
                self._add_sample(number, archive, members, path)
                key, members = sample, {}
                seen.add(sample)
            suffix = suffix.lower()
            if suffix in members:
                raise DataError(
                    f"{path}, offset {member.offset}: expected one member .{suffix} a sample, found two: {member.name!r}"
                )
            members[suffix] = member
        self._add_sample(number, archive, members, path)

    def labels_of_all(self, required: bool) -> NDArray[Any] | None:
        """Return the labels in the order of the samples; None: there are none, or they are not looked at. Local."""
        if self._kind == "none":
            return None
        if self._unlabelled and (self._labels or required):
            raise DataError(f"{self._unlabelled}: expected a label (.{' or .'.join(_LABELS)}), found none: add one to each sample")
        if not self._labels:
            return None
        try:
            return np.array(self._labels)
        except (ValueError, OverflowError) as error:
            raise DataError(
                f"{self._label_place}: expected labels of one shape, found several in the archives: give every sample as many"
            ) from error

    def _add_sample(self, number: int, archive: mmap.mmap, members: dict[str, TarMember], path: str) -> None:
        if not members:
            return
        inputs = [suffix for suffix in _INPUTS if suffix in members]
        labels = [suffix for suffix in _LABELS if suffix in members]
        if not inputs and not labels:
            return
        place = f"{path}, offset {next(iter(members.values())).offset}"
        if len(inputs) != 1:
            raise DataError(f"{place}: expected one input (.{', .'.join(_INPUTS)}) a sample, found {', '.join(members)}: mend it")
        member, kind = members[inputs[0]], _INPUTS[inputs[0]]
        if self.input_kind not in ("", kind):
            raise DataError(f"{place}: expected inputs of one kind, found .{inputs[0]} after others: convert the samples")
        self.input_kind = kind
        self.shards.append(number)
        self.offsets.append(member.offset)
        self.sizes.append(member.size)
        if not labels:
            self._unlabelled = self._unlabelled or place
        elif self._kind != "none":
            self._label_place = self._label_place or place
            self._labels.append(_read_label(archive, members[labels[0]], labels[0], path))


def _read_label(archive: mmap.mmap, member: TarMember, suffix: str, path: str) -> int | float | list[Any]:
    """Return a number or a list of numbers."""
    place = f"{path}, offset {member.offset}"
    try:
        if member.size > _LARGEST_LABEL:
            raise ValueError(f"{member.size} bytes")
        text = archive[member.offset : member.offset + member.size].decode()
        if suffix == "cls":
            if "_" in text:  # which int() and float() take
                raise ValueError(f"found {text[:40]!r}")
            return int(text) if text.strip().lstrip("+-").isdecimal() else float(text)
        label = json.loads(text)["label"]
        if isinstance(label, bool) or not isinstance(label, int | float | list):
            raise TypeError(f"found {str(label)[:40]!r}")
        return label
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        wanted = "a number" if suffix == "cls" else 'an object with a "label", a number or a list of numbers'
        raise DataError(f"{place}: expected {wanted} in {member.name!r}: {error}: mend or drop the sample") from error


def _map_archive(path: str) -> mmap.mmap:
    check_file(path)
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _decode_npy(content: bytes, place: str) -> NDArray[Any]:
    """Return the array of an NPY file; a header that promises more than there is costs no memory."""
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read_header(file)
        flat = np.frombuffer(content, dtype, offset=file.tell())
        return flat.reshape(shape, order="F" if is_fortran else "C")
    except Exception as error:  # NumPy's reader of headers raises many types on damaged bytes
        raise DataError(f"{place}: expected an NPY array of numbers: {error}: replace the member") from error
