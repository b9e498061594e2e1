"""The environment of strict mode."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lepton_mpi.errors import ConfigError
from lepton_mpi.runtime.strict_mode import is_strict, strict_limit_s


@pytest.mark.parametrize(("value", "on"), [("", False), ("0", False), ("1", True), ("yes", True)])
def test_the_switch(value: str, on: bool) -> None:
    assert is_strict({"LEPTON_STRICT": value}) is on
    assert is_strict({}) is False


def test_the_limit() -> None:
    assert strict_limit_s({}) == 5.0
    assert strict_limit_s({"LEPTON_STRICT_LIMIT_S": "0.5"}) == 0.5


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "inf"])
def test_no_limit(value: str) -> None:
    with pytest.raises(ConfigError, match="LEPTON_STRICT_LIMIT_S: expected a number of seconds above 0"):
        strict_limit_s({"LEPTON_STRICT_LIMIT_S": value})


def test_marked_functions_are_the_functions_themselves_unless_asked_for() -> None:
    text = "from lepton_mpi.comm.agreement import do_on_all; print(hasattr(do_on_all, '__wrapped__'))"
    found = {}
    for value in ("0", "1"):
        env = {**os.environ, "LEPTON_STRICT": value}
        found[value] = subprocess.run(
            [sys.executable, "-c", text], env=env, capture_output=True, text=True, check=True
        ).stdout.strip()
    assert found == {"0": "False", "1": "True"}
