"""Modules of neighbouring folders that tests here use: residual networks in PyTorch, and small runs."""

from __future__ import annotations

import sys
from pathlib import Path

_TESTS = Path(__file__).parents[2]
sys.path.extend(str(_TESTS / folder) for folder in ("unit/models", "mpi/train"))
