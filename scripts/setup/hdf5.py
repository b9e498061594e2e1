"""Find an HDF5 built with this environment's MPI, and build h5py against it.

h5py's wheel is serial. A parallel one must load the very MPI library that mpi4py loads: an HDF5 that needs
another one would bring a second MPI into the process, so it is refused before anything is built.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

# The MPI library that Debian's and Ubuntu's packages of parallel HDF5 need.
DEBIAN_PACKAGES = {"libmpi.so.40": "libhdf5-openmpi-dev", "libmpich.so.12": "libhdf5-mpich-dev"}

# Prints which of the sonames given are loaded once mpi4py has loaded its MPI.
LOADED_PROBE = """
import ctypes, os, sys
import mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
for soname in sys.argv[1:]:
    try:
        ctypes.CDLL(soname, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError:
        continue
    print(soname)
"""

# Prints the version of an Open MPI, nothing for another MPI.
OPENMPI_VERSION_PROBE = """
import mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
vendor, version = MPI.get_vendor()
print(*(version if vendor == "Open MPI" else ()))
"""

# Writes and reads one file with all ranks; refuses a process that holds two MPI libraries.
WRITE_PROBE = """
import re, sys
from mpi4py import MPI
import h5py
assert h5py.get_config().mpi, "h5py is serial"
libraries = set(re.findall(r"/\\S*/libmpi(?:ch)?\\.so\\S*", open("/proc/self/maps").read()))
assert len(libraries) == 1, f"two MPI libraries: {libraries}"
comm = MPI.COMM_WORLD
with h5py.File(sys.argv[1], "w", driver="mpio", comm=comm) as file:
    dataset = file.create_dataset("rank", (comm.size,), "i4")
    with dataset.collective:
        dataset[comm.rank] = comm.rank
with h5py.File(sys.argv[1], "r", driver="mpio", comm=comm) as file:
    assert file["rank"][:].tolist() == list(range(comm.size))
if comm.rank == 0:
    print("works", comm.size, h5py.version.hdf5_version)
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def needed_mpi(prefix: Path) -> str | None:
    """Return the soname of the MPI library that the HDF5 under prefix needs; None: no shared library, or a serial one."""
    for library in (*prefix.glob("lib*/libhdf5.so"), *prefix.glob("lib/*/libhdf5.so")):
        dynamic = subprocess.run(["readelf", "-d", library], capture_output=True, text=True).stdout
        found = re.search(r"NEEDED.*\[(lib\w*mpi[^\]]*)\]", dynamic)
        if found:
            return found[1]
    return None


def candidates() -> list[Path]:
    """Return the prefixes under which a parallel HDF5 may lie, the most deliberate first."""
    prefixes = [os.environ[name] for name in ("HDF5_DIR", "HDF5_ROOT", "HDF5_HOME") if os.environ.get(name)]
    if h5pcc := shutil.which("h5pcc"):  # on PATH by a module; Debian's names a prefix that holds no libhdf5.so and drops out
        config = subprocess.run([h5pcc, "-showconfig"], capture_output=True, text=True).stdout
        prefixes += re.findall(r"Installation point:\s*(\S+)", config)
    prefixes += sorted(glob.glob("/usr/lib/*/hdf5/openmpi") + glob.glob("/usr/lib/*/hdf5/mpich"))
    return [Path(prefix) for prefix in prefixes if Path(prefix).exists()]


def loaded(run: Run, python: Path, sonames: list[str]) -> list[str]:
    """Return which of the sonames are loaded in a process that has loaded mpi4py's MPI."""
    return run([python, "-c", LOADED_PROBE, *sonames], check=False).stdout.split()


def corrupts_files(version: tuple[int, ...]) -> bool:
    """Return whether an Open MPI of this version may corrupt parallel HDF5 files silently (open-mpi/ompi #12718)."""
    return version < (4, 1, 7) or (5, 0, 0) <= version < (5, 0, 6)


def find(run: Run, python: Path) -> tuple[Path | None, str]:
    """Return the prefix of an HDF5 that fits mpi4py's MPI, or None and the reason."""
    needs = {prefix: soname for prefix in candidates() if (soname := needed_mpi(prefix))}
    fitting = loaded(run, python, list(needs.values()))
    for prefix, soname in needs.items():
        if soname in fitting:
            return prefix, ""
    if not needs:
        return None, "no parallel HDF5 on this machine"
    prefix, soname = next(iter(needs.items()))
    return None, f"the HDF5 in {prefix} needs {soname}, another MPI than this environment's"


def install_debian_package(run: Run, python: Path) -> bool:
    """As root on Debian or Ubuntu, install the parallel HDF5 of this MPI. Return whether something was installed."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return False
    fitting = loaded(run, python, list(DEBIAN_PACKAGES))
    if not fitting:
        return False
    package = DEBIAN_PACKAGES[fitting[0]]
    print(f"setup: installing {package}", flush=True)
    install = ["apt-get", "install", "-y", "--no-install-recommends", package]
    if run(install, check=False).returncode == 0:
        return True
    return run(["apt-get", "update"], check=False).returncode == 0 and run(install, check=False).returncode == 0


def choose(run: Run, python: Path) -> tuple[Path | None, str]:
    """Return the prefix of the HDF5 to build for, installed if need be, or None and the reason."""
    version = tuple(map(int, run([python, "-c", OPENMPI_VERSION_PROBE], check=False).stdout.split()))
    if version and corrupts_files(version):
        return None, f"Open MPI {'.'.join(map(str, version))} may corrupt parallel HDF5 files, 4.1.7 and 5.0.6 do not"
    prefix, reason = find(run, python)
    if prefix is None and install_debian_package(run, python):
        prefix, reason = find(run, python)
    return prefix, reason


def works(run: Run, python: Path, mpirun: Path | None, file: Path) -> bool:
    """Return whether the h5py of the environment writes one file with two ranks."""
    if mpirun is None:
        return False
    try:
        result = run([mpirun, "-n", "2", python, "-c", WRITE_PROBE, file], check=False, timeout=120)
    except subprocess.TimeoutExpired:
        return False
    finally:
        file.unlink(missing_ok=True)
    return result.returncode == 0 and "works 2" in result.stdout


def build(run: Run, python: Path, mpicc: Path, prefix: Path, requirement: str) -> bool:
    """Build h5py against the HDF5 under prefix. Return whether it succeeded."""
    # Without build isolation: with it, pip compiles an old mpi4py first, which takes over 20 GB of memory.
    pip = [python, "-m", "pip", "install"]
    if run([*pip, "setuptools>=77", "cython", "pkgconfig", "numpy"], check=False).returncode != 0:
        return False
    options = ["--no-build-isolation", "--no-binary=h5py", "--no-cache-dir", "--no-deps", "--force-reinstall"]
    variables = {"CC": str(mpicc), "HDF5_MPI": "ON", "HDF5_DIR": str(prefix)}
    return run([*pip, *options, requirement], check=False, extra_env=variables).returncode == 0
