"""The door to the C++ extension: what it accepts, and what it says when the extension does not fit."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from lepton_mpi import __version__, native
from lepton_mpi.errors import NativeError
from lepton_mpi.runtime.mpi import MPI

BUILD = json.loads((native.PACKAGE_DIR / "_native_build.json").read_text())


def write_build(folder: Path, **changes: str) -> Path:
    (folder / "_native_build.json").write_text(json.dumps({**BUILD, **changes}))
    return folder


@pytest.mark.parametrize(
    ("text", "family"),
    [
        ("Open MPI v5.0.11, package: Open MPI user@localhost", "openmpi"),
        ("MPICH Version:      4.3.0\nMPICH Release date: ...", "mpich"),
        ("Intel(R) MPI Library 2021.13 for Linux* OS", "mpich"),
        ("MVAPICH Version      :\t4.0", "mpich"),
        ("MPI VERSION    : CRAY MPICH version 8.1.28.15 (ANL base 3.4a2)", "mpich"),
        ("Fujitsu MPI Library 4.0.1", "other"),
    ],
)
def test_mpi_family_of_the_library_texts_in_use(text: str, family: str) -> None:
    assert native.mpi_family(text) == family


def test_the_extension_calls_the_mpi_that_mpi4py_loaded() -> None:
    assert native.mpi_library_version() == MPI.Get_library_version()
    assert native.mpi_family(native.mpi_library_version()) == BUILD["mpi_family"]


def test_one_mpi_library_in_the_process() -> None:
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line}
    assert len([path for path in mapped if Path(path).name.startswith(("libmpi.so", "libmpich.so"))]) == 1


def test_build_record_names_no_folder_of_the_machine_that_built_it() -> None:
    assert set(BUILD) == {"version", "mpi_family", "mpi_soname", "mpicc"}
    assert not any("/" in value for value in BUILD.values())


def test_check_build_accepts_the_extension_in_use(tmp_path: Path) -> None:
    native.check_build(write_build(tmp_path))


def test_check_build_refuses_a_tree_that_is_not_built(tmp_path: Path) -> None:
    with pytest.raises(NativeError, match=r"not built.*Running from the source tree\?.*make setup"):
        native.check_build(tmp_path)


def test_check_build_refuses_another_version(tmp_path: Path) -> None:
    with pytest.raises(NativeError, match=rf"is of lepton_mpi 0\.0\.1, but the package is {__version__}.*Rebuild"):
        native.check_build(write_build(tmp_path, version="0.0.1"))


def test_check_build_refuses_another_family(tmp_path: Path) -> None:
    other = "mpich" if BUILD["mpi_family"] == "openmpi" else "openmpi"
    with pytest.raises(NativeError, match=rf"built for {other} .*mpi4py runs on {BUILD['mpi_family']}.*MPICC="):
        native.check_build(write_build(tmp_path, mpi_family=other))


def test_check_build_refuses_a_library_of_the_same_family_that_is_not_loaded(tmp_path: Path) -> None:
    with pytest.raises(NativeError, match=r"libmpi\.so\.999"):
        native.check_build(write_build(tmp_path, mpi_soname="libmpi.so.999"))


def test_is_loaded_does_not_load() -> None:
    assert native.is_loaded(BUILD["mpi_soname"])
    program = "from lepton_mpi import native; print(native.is_loaded('libanl.so.1'), 'libanl' in open('/proc/self/maps').read())"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.split() == ["False", "False"]


def test_an_extension_that_does_not_load_is_a_native_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lepton_mpi._native", None)
    with pytest.raises(NativeError, match=r"does not load into this Python.*Rebuild"):
        runpy.run_path(str(native.PACKAGE_DIR / "native.py"))


def test_kernel_sources_of_an_installed_package_come_first(tmp_path: Path) -> None:
    package = tmp_path / "lepton_mpi"
    for root in (package / "_kernels", tmp_path / "kernels"):
        (root / "cuda").mkdir(parents=True)
        (root / "include").mkdir()
    assert native.kernel_source_dirs(package) == (package / "_kernels" / "cuda", package / "_kernels" / "include")


def test_kernel_sources_of_a_source_tree(tmp_path: Path) -> None:
    for part in ("cuda", "include"):
        (tmp_path / "kernels" / part).mkdir(parents=True)
    assert native.kernel_source_dirs(tmp_path / "lepton_mpi") == (tmp_path / "kernels" / "cuda", tmp_path / "kernels" / "include")


def test_kernel_sources_missing(tmp_path: Path) -> None:
    with pytest.raises(NativeError, match=r"no CUDA sources in .*_kernels"):
        native.kernel_source_dirs(tmp_path / "lepton_mpi")


def test_kernel_sources_of_this_installation_hold_headers() -> None:
    _, include = native.kernel_source_dirs()
    assert (include / "lepton" / "codec.hpp").exists()
