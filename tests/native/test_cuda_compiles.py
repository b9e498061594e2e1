"""The CUDA sources compile; no GPU is needed."""

import shutil
import subprocess

import pytest

from lepton_mpi.native import kernel_source_dirs
from lepton_mpi.ops.cuda_module import COMPILE_OPTIONS

CUDA_DIR, INCLUDE_DIR = kernel_source_dirs()
SOURCES = sorted(CUDA_DIR.glob("*.cu"))


def test_there_are_cuda_sources():
    assert SOURCES


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_source_compiles_and_defines_its_kernel(source, tmp_path):
    ptx = tmp_path / "kernel.ptx"
    command = ["nvcc", *COMPILE_OPTIONS, "-Werror", "all-warnings", "-arch=sm_90", "-ptx", f"-I{INCLUDE_DIR}", source, "-o", ptx]
    subprocess.run(command, check=True)
    text = ptx.read_text()
    assert f".entry {source.stem}(" in text
    assert "fma.rn.f32" not in text
    assert "approx" not in text
