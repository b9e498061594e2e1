"""The hook for PyTorch where PyTorch is not installed."""

from __future__ import annotations

import sys

import pytest

from lepton_mpi.errors import ConfigError
from lepton_mpi.interop.torch import require_torch


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match=r"pip install lepton_mpi\[torch\]"):
        require_torch()
