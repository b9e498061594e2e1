"""Exported weights of every family come back as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_cases import FAMILIES

from lepton_mpi.config.schema import ModelConfig
from lepton_mpi.interop.choose_map import make_name_map
from lepton_mpi.models.family import DataShape


@pytest.mark.parametrize("name", ["weights.safetensors", "folder"])
@pytest.mark.parametrize("case", FAMILIES.values(), ids=FAMILIES)
def test_weights_come_back(tmp_path: Path, tools: Any, case: tuple[ModelConfig, DataShape], name: str) -> None:
    config, data = case
    model = tools.declare(config, data)
    values = tools.random_values(model)
    make_name_map(model, config).export(values.__getitem__, tmp_path / name)
    found = tools.read_values(model, config, tmp_path / name)
    assert found.keys() == values.keys()
    for parameter, value in values.items():
        np.testing.assert_array_equal(found[parameter], value, err_msg=parameter)
