"""NumPy's NPZ archives: inputs and labels as named arrays of one file; memory-mapped, but compressed ones are loaded.

Source of the archive's layout: PKWARE, "APPNOTE.TXT", sections 4.3.7 (local file header) and 4.4.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
import zlib
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.data.dataset import ArrayDataset
from lepton_mpi.data.validation import check_file, check_inputs, count_classes, read_label_array, suggest_format
from lepton_mpi.errors import DataError
from lepton_mpi.models.task import LabelKind

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # its last two fields are the lengths of name and extra field
_ENCRYPTED = 1  # flag bit 0
_BLOCK_NBYTES = 16 << 20


def open_npz(
    path: str,
    inputs_name: str,
    labels_name: str,
    num_classes: int = 0,
    *,
    labels_required: bool = True,
    label_kind: LabelKind = "class",
) -> ArrayDataset:
    """Open an NPZ archive. Local.

    Args:
        path: the archive, compressed or not.
        inputs_name: name of the array of inputs, [N, ...].
        labels_name: name of the array of labels, [N, ...].
        num_classes: number of classes; 0: one more than the largest label.
        labels_required: whether an archive without labels is an error.
        label_kind: what the labels are; none are read for "none".

    Raises:
        DataError: the file is missing or malformed, lacks an array, or the two do not fit.
    """
    check_file(path)
    wanted = {inputs_name: "data.inputs_name"}
    if label_kind != "none":
        wanted[labels_name] = "data.labels_name"
    arrays, present = _read_arrays(path, tuple(wanted))
    for name, key in wanted.items():
        if name not in arrays and (name == inputs_name or labels_required):
            raise DataError(f"{path}: expected an array {name!r}, found {', '.join(present) or 'no array'}: set {key}")
    inputs, name = arrays[inputs_name], os.path.basename(path)
    check_inputs(inputs.shape, inputs.dtype, f"{path}, array {inputs_name!r}")
    if label_kind == "none" or labels_name not in arrays:
        return ArrayDataset(name, inputs, None, 0)
    labels = read_label_array(arrays[labels_name], label_kind, inputs.shape[0], num_classes, f"{path}, array {labels_name!r}")
    return ArrayDataset(name, inputs, labels, count_classes(labels, num_classes))


def _read_arrays(path: str, wanted: tuple[str, ...]) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Return the wanted arrays that the archive holds, and the names of all arrays in it."""
    place = path
    try:
        with zipfile.ZipFile(path) as archive:
            present = sorted(name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy"))
            arrays = {}
            for name in (name for name in wanted if name in present):
                place = f"{path}, array {name!r}"
                member = archive.getinfo(f"{name}.npy")
                if member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & _ENCRYPTED:
                    arrays[name] = _map_member(path, member)
                else:
                    with archive.open(member) as file:
                        arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
            return arrays, present
    except Exception as error:  # zip, zlib and NumPy's reader raise many types on damaged bytes
        raise DataError(
            f"{place}: expected an NPZ archive with arrays of numbers: {error}: {suggest_format(path, 'npz')}"
        ) from error


def _map_member(path: str, member: zipfile.ZipInfo) -> NDArray[Any]:
    """Return an array that lies uncompressed in an archive, memory-mapped, after its checksum was compared."""
    with open(path, "rb") as file:
        file.seek(member.header_offset)
        fields = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        begin = member.header_offset + _LOCAL_HEADER.size + fields[-2] + fields[-1]
        if fields[0] != b"PK\3\4" or begin + member.file_size > os.fstat(file.fileno()).st_size:
            raise ValueError(f"no array where the directory of the archive says, at byte {member.header_offset}")
        file.seek(begin)
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read_header(file)
        offset = file.tell()
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        if offset - begin + math.prod(shape) * dtype.itemsize != member.file_size:
            raise ValueError(f"an array of shape {shape} and type {dtype} takes other than the {member.file_size} bytes there are")
        file.seek(begin)
        checksum, left = 0, member.file_size
        while left:
            block = file.read(min(left, _BLOCK_NBYTES))
            if not block:
                raise ValueError("it ends too early")
            checksum, left = zlib.crc32(block, checksum), left - len(block)
        if checksum != member.CRC:
            raise ValueError(f"bad CRC-32 {checksum:08x}, the archive says {member.CRC:08x}")
    order: Literal["F", "C"] = "F" if is_fortran else "C"
    if math.prod(shape) == 0:
        return np.empty(shape, dtype, order)  # nothing to map
    return np.memmap(path, dtype, mode="r", offset=offset, shape=shape, order=order)
