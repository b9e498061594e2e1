"""A stable hash of a section, for telling whether two runs were configured alike."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def section_digest(section: DataclassInstance) -> str:
    """Return the SHA-256 of a section's keys and values, as 64 hex digits.

    Local. Independent of the order of the keys, of the process, and of Python's hash seed: a
    checkpoint stores that of its model section, and a resume compares.

    Args:
        section: one of the sections of `Config`, e.g. `config.model`.
    """
    text = json.dumps(asdict(section), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
