"""The CUDA kernels of the codecs compute the bytes of the CPU kernels; they run on the CPU here, lane by lane."""

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
KERNELS = HERE.parents[1] / "kernels"
FLAGS = ["-std=c++17", "-O2", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_same_bytes_as_the_cpu_kernels(tmp_path):
    program = tmp_path / "cuda_codecs"
    sources = [*sorted((KERNELS / "cpu").glob("codecs*.cpp")), HERE / "cuda_codecs.cpp"]
    command = ["g++", *FLAGS, f"-I{KERNELS / 'include'}", f"-I{KERNELS / 'cuda'}", *sources, "-o", program]
    subprocess.run(command, check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout == "285 payloads agree\n"
