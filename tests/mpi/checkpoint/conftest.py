"""The directory of checkpoints that all ranks share, for the checkpoint tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def root(folder: Path) -> Path:
    return folder / "checkpoints"
