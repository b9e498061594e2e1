"""The CPU kernels give the same bytes with every instruction set that this CPU can run."""

import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
KERNELS = HERE.parents[1] / "kernels"
CPU = KERNELS / "cpu"
# The programs of digest_<area>.cpp, and the kernels that each of them calls.
AREAS = {
    "codecs": ["codecs_float", "codecs_int4", "codecs_int8", "codecs_sign1", "topk"],
    "gradients": ["exact_sum", "sum", "updates"],
    "low_rank": ["low_rank"],
    "images": ["batch_norm", "depthwise", "images"],
    "elements": ["bf16_rounding", "dropout", "elementwise", "embedding"],
    "rows": ["cross_entropy", "normalisation", "softmax"],
}
# What else a program needs: kernels without clones, and those of other areas.
ALSO_LINKED = {"codecs": ["codecs", "topk_decode"]}
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


def run_digest(build_dir: Path, area: str, name: str, options: list[str]) -> str:
    program = build_dir / f"{area}_{name.replace(' ', '_')}"
    sources = [CPU / f"{kernel}.cpp" for kernel in AREAS[area] + ALSO_LINKED.get(area, [])] + [HERE / f"digest_{area}.cpp"]
    subprocess.run(["g++", *FLAGS, *options, f"-I{KERNELS / 'include'}", *sources, "-o", program], check=True)
    return subprocess.run([program], check=True, capture_output=True, text=True).stdout


def test_every_kernel_with_clones_is_digested():
    assert sorted(kernel for kernels in AREAS.values() for kernel in kernels) == sorted(
        source.stem for source in CPU.glob("*.cpp") if "LEPTON_SIMD" in source.read_text()
    )


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs an x86-64 CPU: others have no clones")
@pytest.mark.parametrize("area", AREAS)
def test_same_bytes_with_every_instruction_set(area, tmp_path):
    # A header of the same name, found first, turns the clones off: one program holds one instruction set.
    shadow = tmp_path / "shadow" / "lepton"
    shadow.mkdir(parents=True)
    (shadow / "simd.hpp").write_text("#pragma once\n#define LEPTON_SIMD\n")
    available = cpu_flags()
    programs: dict[str, list[str]] = {"dispatched": []}
    for name, options in INSTRUCTION_SETS.items():
        if {option.removeprefix("-m") for option in options} <= available:
            programs[name] = [*options, f"-I{shadow.parent}"]
    with ThreadPoolExecutor(max_workers=2) as pool:
        shown = list(pool.map(lambda program: run_digest(tmp_path, area, *program), programs.items()))
    assert len(shown[0].splitlines()) >= len(AREAS[area])
    for name, received in zip(programs, shown, strict=True):
        assert received.splitlines() == shown[0].splitlines(), f"{name} differs from what this CPU is dispatched to"
