"""The CPU kernels give the same bytes with every instruction set that this CPU can run."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

KERNELS = Path(__file__).resolve().parents[2] / "kernels"
# The project's own flags that bear on results, see CMakeLists.txt.
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
INSTRUCTION_SETS = {"default": [], "avx2": ["-mavx2"], "avx2 with fma": ["-mavx2", "-mfma"], "avx512f": ["-mavx512f"]}


def cpu_flags() -> set[str]:
    """Return what /proc/cpuinfo says that the first CPU can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split(":")[1].split()) for line in lines if line.startswith("flags")), set())


def run_digest(build_dir: Path, name: str, options: list[str]) -> str:
    program = build_dir / name.replace(" ", "_")
    sources = [KERNELS / "cpu" / "codecs.cpp", KERNELS / "cpu" / "updates.cpp", Path(__file__).with_name("simd_digest.cpp")]
    subprocess.run(["g++", *FLAGS, *options, f"-I{KERNELS / 'include'}", *sources, "-o", program], check=True)
    return subprocess.run([program], check=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs an x86-64 CPU: others have no clones")
def test_same_bytes_with_every_instruction_set(tmp_path):
    # A header of the same name, found first, turns the clones off: one program holds one instruction set.
    shadow = tmp_path / "shadow" / "lepton"
    shadow.mkdir(parents=True)
    (shadow / "simd.hpp").write_text("#pragma once\n#define LEPTON_SIMD\n")
    expected = run_digest(tmp_path, "dispatched", [])
    assert len(expected.splitlines()) == 13
    available = cpu_flags()
    for name, options in INSTRUCTION_SETS.items():
        if {option.removeprefix("-m") for option in options} <= available:
            received = run_digest(tmp_path, name, [*options, f"-I{shadow.parent}"])
            assert received == expected, f"{name} differs from what this CPU is dispatched to"
