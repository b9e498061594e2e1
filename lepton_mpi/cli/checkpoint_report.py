"""What the checkpoint tools print: text for people, and values for `format_json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lepton_mpi.checkpoint.comparison import Comparison, Difference
from lepton_mpi.checkpoint.inspection import Inspection
from lepton_mpi.checkpoint.layout import TensorInfo


def format_inspection(found: Inspection) -> str:
    """Return a checkpoint's head and a table of its tensors. Local."""
    manifest = found.manifest
    unknown = "not said"
    lines = [
        f"checkpoint  {found.path}",
        f"format      {found.version}",
        f"written     by {manifest.writer}, {manifest.written_at or 'time ' + unknown}, host {manifest.host or unknown}",
        f"step        {manifest.step}",
    ]
    for name in ("epoch", "position", "grid", "family", "task"):
        if name in found.attributes:
            lines.append(f"{name:<12}{_short(found.attributes[name])}")
    lines.append(f"tensors     {len(found.tensors)}, {found.tensor_nbytes} bytes ({format_nbytes(found.tensor_nbytes)})")
    lines.append(f"files       {found.disk_nbytes} bytes ({format_nbytes(found.disk_nbytes)})")
    rows = [(path, _shape(info), str(info.dtype), str(info.nbytes)) for path, info in found.tensors.items()]
    return "\n".join(lines) + "\n\n" + _table([("tensor", "shape", "dtype", "bytes"), *rows])


def format_comparison(found: Comparison) -> str:
    """Return what differs, a line a tensor, and a summary. Local."""
    lines = [f"attribute  {name}: {_short(a)} and {_short(b)}" for name, (a, b) in found.attributes.items()]
    lines += [f"tensor     {_describe(difference)}" for difference in found.differences]
    lines.append(f"{'equal' if found.is_equal else 'different'}: {found.num_equal} tensors equal, {len(found.differences)} not")
    return "\n".join(lines) + "\n"


def comparison_dict(found: Comparison) -> dict[str, Any]:
    """Return a comparison as values for `format_json`. Local."""
    return {
        "equal": found.is_equal,
        "num_equal": found.num_equal,
        "attributes": {name: list(pair) for name, pair in found.attributes.items()},
        "tensors": [_difference_dict(difference) for difference in found.differences],
    }


def format_nbytes(nbytes: int) -> str:
    """Return a number of bytes for people, such as 1.5 MiB. Local."""
    size, unit = float(nbytes), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"


def _difference_dict(difference: Difference) -> dict[str, Any]:
    sides = {
        name: None if info is None else {"shape": list(info.shape), "dtype": str(info.dtype)}
        for name, info in (("a", difference.first), ("b", difference.second))
    }
    if not difference.is_comparable:
        return {"path": difference.path, **sides}
    return {
        "path": difference.path,
        **sides,
        "num_different": difference.num_different,
        "first_index": list(difference.index),
        "first_values": list(difference.values),
        "largest_absolute": difference.largest_absolute,
        "largest_relative": difference.largest_relative,
    }


def _describe(difference: Difference) -> str:
    if difference.first is None or difference.second is None:
        return f"{difference.path}: only in {'b' if difference.first is None else 'a'}"
    if not difference.is_comparable:
        a, b = (f"{_shape(info)} of {info.dtype}" for info in (difference.first, difference.second))
        return f"{difference.path}: {a} and {b}"
    index = "[" + ", ".join(map(str, difference.index)) + "]"
    a, b = map(repr, difference.values)
    return (
        f"{difference.path}: {difference.num_different} elements differ, first {index}: {a} and {b}; "
        f"largest difference {difference.largest_absolute:.6g}, relative {difference.largest_relative:.6g}"
    )


def _short(value: object) -> str:
    """Return an attribute in one line; JSON objects as `name value` pairs."""
    text = str(value)
    if text.startswith("{"):
        try:
            return ", ".join(f"{name} {item}" for name, item in json.loads(text).items())
        except ValueError:
            return text
    return text


def _shape(info: TensorInfo) -> str:
    return "x".join(map(str, info.shape)) or "scalar"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    last = len(widths) - 1
    lines = [
        "  ".join(
            cell.rjust(width) if i == last else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(lines) + "\n"
