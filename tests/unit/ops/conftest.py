"""A stand-in for a GPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import strict_device

from lepton_mpi.ops.cuda_module import cuda_kernel


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Make `array_module` find the stand-in for CuPy; returns it."""
    for name, module in strict_device.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    cuda_kernel.cache_clear()
    yield sys.modules["cupy"]
    cuda_kernel.cache_clear()
