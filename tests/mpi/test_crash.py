"""A kill or a power loss at any instant of a save loses nothing that was announced: the short form of benchmarks/crash_trials.py.

The trials start jobs of their own, so these tests run outside of mpirun: `python -m pytest tests/mpi/test_crash.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

STARTS_MPIRUN = True
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "crash_trials.py"
LAUNCHED = any(name in os.environ for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"))

pytestmark = [
    pytest.mark.skipif(LAUNCHED, reason="starts mpirun itself"),
    pytest.mark.skipif(sys.platform != "linux" or sys.maxsize < 2**32, reason="the shim is for Linux on 64 bits"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="the shim needs a C compiler"),
    pytest.mark.timeout_s(300),
]


def make_trials(tmp_path: Path, *arguments: object, code: int = 0) -> dict[str, Any]:
    """Run the script and return what it prints."""
    command = [sys.executable, str(SCRIPT), "--folder", str(tmp_path), *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=280, check=False)
    assert ended.returncode == code, ended.stdout[-8000:] + ended.stderr[-8000:]
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def test_kills(tmp_path: Path) -> None:
    found = make_trials(tmp_path, "--kind", "kill", "--trials", 50, "--time-limit-s", 120)["kill"]
    assert found["failures"] == []
    assert found["trials"] >= 5  # 50, but on a busy machine
    assert found["killed"] >= 0.6 * found["trials"]  # a few places lie behind the last call
    assert found["resumes_compared"] >= 0.6 * found["trials"]
    assert list(tmp_path.iterdir()) == []


def test_power_loss(tmp_path: Path) -> None:
    found = make_trials(tmp_path, "--kind", "power-loss", "--trials", 200)["power_loss"]
    assert found["failures"] == []
    assert found["trials"] == 200
    assert found["loaded"] > 120
    assert found["checkpoints_passed_over"] > 0


@pytest.mark.parametrize(("kind", "save", "trials"), [("kill", "direct", 3), ("power-loss", "direct-replace", 60)])
def test_trials_notice_what_is_lost(tmp_path: Path, kind: str, save: str, trials: int) -> None:
    found = make_trials(tmp_path, "--kind", kind, "--saves", save, "--trials", trials, "--sabotage", code=1)
    problems = [failure["problem"] for failure in found[kind.replace("-", "_")]["failures"]]
    assert any("was announced" in problem or "refused to start" in problem for problem in problems)
