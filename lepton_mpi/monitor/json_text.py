"""JSON (RFC 8259) of metrics: NumPy scalars become numbers, NaN and infinity become null."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def format_json(value: object, indent: int | None = None) -> str:
    """Return a value as JSON text that every reader accepts.

    Local. JSON has no NaN or infinity (RFC 8259, section 6), so both are written as null.

    Args:
        value: mappings, lists, tuples, strings, numbers, booleans, None, NumPy scalars and arrays.
        indent: columns per level; None writes one line.
    """
    return json.dumps(_plain(value), indent=indent, allow_nan=False, ensure_ascii=False)


def _plain(value: object) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
