"""inspect, verify, diff and convert-checkpoint in one process: what they print, and their exit codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lepton_mpi.checkpoint.layout import TensorSlice
from lepton_mpi.checkpoint.writer import write_checkpoint
from lepton_mpi.cli.arguments import read_arguments
from lepton_mpi.cli.checkpoint_arguments import COMMANDS, CheckpointArguments
from lepton_mpi.cli.checkpoint_tools import run_checkpoint_tool
from lepton_mpi.errors import CheckpointError, ConfigError
from lepton_mpi.runtime.mpi import start_mpi

GOLDEN = Path(__file__).parents[1] / "checkpoint" / "golden" / "format-1.0" / "step-000000042"
WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)


def tool(*argv: object) -> int:
    arguments = read_arguments(list(map(str, argv)))
    assert isinstance(arguments, CheckpointArguments)
    return run_checkpoint_tool(start_mpi().Dup(), arguments)


def save(root: Path, step: int, weight: np.ndarray, **attributes: object) -> Path:
    slices = [TensorSlice("/param/w", weight.shape, (0, 0), weight), TensorSlice("/param/scale", (), (), np.array(0.1))]
    return write_checkpoint(start_mpi().Dup(), root, step, slices, attributes)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    attributes = {"epoch": 3, "grid": '{"data": 2, "stages": 1}', "family": "mlp", "best": float("nan"), "odd": "{"}
    for step in (5, 9):
        save(folder / "checkpoints", step, WEIGHT + (step == 9) * np.eye(2, 3, dtype=np.float32), **attributes)
    return folder


def damage(checkpoint: Path) -> None:
    """Change an element of each tensor."""
    data = (checkpoint / "data.h5").read_bytes()
    for element in (np.float64(0.1).tobytes(), WEIGHT[1].tobytes()):
        assert data.count(element) == 1
        data = data.replace(element, element[::-1])
    (checkpoint / "data.h5").write_bytes(data)


def test_inspect_names_everything(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool("inspect", run) == 0
    text = capsys.readouterr().out
    for line in ("format      1.1", "step        9", "epoch       3", "grid        data 2, stages 1", "family      mlp"):
        assert f"{line}\n" in text
    assert "tensors     2, 32 bytes (32 bytes)\n" in text
    assert text.splitlines()[-2:] == ["/param/scale  scalar  float64      8", "/param/w      2x3     float32     24"]


def test_inspect_json_of_each_form_of_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newest = run / "checkpoints" / "step-000000009"
    for path in (run, run / "checkpoints", newest):
        assert tool("inspect", path, "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["checkpoint"], found["step"], found["tensor_nbytes"]) == (str(newest), 9, 32)
        assert found["attributes"]["grid"] == {"data": 2, "stages": 1}
        assert (found["attributes"]["odd"], found["attributes"]["best"]) == ("{", None)
        assert found["disk_nbytes"] == sum(file.stat().st_size for file in newest.iterdir())
        assert found["tensors"][1] == {"path": "/param/w", "shape": [2, 3], "dtype": "float32", "nbytes": 24}
        assert found["written_at"].endswith("Z")
        assert found["host"]


def test_inspect_of_a_format_that_does_not_say_when(capsys: pytest.CaptureFixture[str]) -> None:
    assert tool("inspect", GOLDEN) == 0
    assert "written     by lepton_mpi 0.1.0, time not said, host not said\n" in capsys.readouterr().out


def test_verify_all_or_the_newest(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool("verify", run) == 0
    assert [line.split(": ")[0][-9:] for line in capsys.readouterr().out.splitlines()] == ["000000009", "000000005"]
    damage(run / "checkpoints" / "step-000000005")
    assert tool("verify", "--newest", run) == 0
    capsys.readouterr()
    assert tool("verify", run, GOLDEN) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.startswith("DAMAGED ") for line in lines] == [False, True, True, False]
    assert "tensor /param/scale, extent []" in lines[1]
    assert "tensor /param/w, extent [0:2, 0:3]" in lines[2]


def test_verify_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoints" / "step-000000009" / "MANIFEST.json").unlink()
    assert tool("verify", run, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert [checkpoint["fine"] for checkpoint in found["checkpoints"]] == [False, True]
    assert "no MANIFEST.json" in found["checkpoints"][0]["damages"][0]
    assert not found["fine"]


def test_diff(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = (run / "checkpoints" / f"step-00000000{step}" for step in (5, 9))
    assert tool("diff", old, new) == 1
    text = capsys.readouterr().out
    assert "attribute  step: 5 and 9\n" in text
    assert "/param/w: 2 elements differ, first [0, 0]: 0.0 and 1.0; largest difference 1, relative 1\n" in text
    assert text.endswith("different: 1 tensors equal, 1 not\n")
    assert tool("diff", new, run) == 0
    assert capsys.readouterr().out.endswith("equal: 2 tensors equal, 0 not\n")
    other = save(tmp_path / "other", 5, WEIGHT.T)
    assert tool("diff", old, other) == 1
    text = capsys.readouterr().out
    assert "/param/w: 2x3 of float32 and 3x2 of float32\n" in text
    assert "attribute  odd: { and None\n" in text
    assert tool("diff", GOLDEN, other) == 1
    text = capsys.readouterr().out
    assert "/param/w: only in b\n" in text
    assert "/param/layers.0.bias: only in a\n" in text


def test_diff_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = (run / "checkpoints" / f"step-00000000{step}" for step in (5, 9))
    assert tool("diff", old, new, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["equal"], found["num_equal"], found["attributes"]) == (False, 1, {"step": [5, 9]})
    (tensor,) = found["tensors"]
    assert (tensor["path"], tensor["first_index"], tensor["first_values"]) == ("/param/w", [0, 0], [0.0, 1.0])
    assert tool("diff", old, GOLDEN, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["tensors"][0] == {"path": "/opt/momentum/layers.0.bias", "a": None, "b": {"shape": [4], "dtype": "float32"}}


def test_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool("convert-checkpoint", GOLDEN, tmp_path / "new") == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'new'}: step-000000042, format 1.0 to 1.1\n"
    assert tool("verify", tmp_path / "new") == 0


def test_damaged_checkpoints_are_neither_shown_nor_compared(run: Path) -> None:
    newest = run / "checkpoints" / "step-000000009"
    shutil.copyfile(GOLDEN / "data.h5", newest / "data.h5")
    for argv in (("inspect", run), ("diff", newest, GOLDEN)):
        with pytest.raises(CheckpointError, match="it was cut or changed"):
            tool(*argv)


@pytest.mark.parametrize("command", COMMANDS)
def test_bad_arguments(tmp_path: Path, command: str) -> None:
    paths = [tmp_path / "a", tmp_path / "b"][: 1 if command in ("inspect", "verify") else 2]
    with pytest.raises(ConfigError, match="no such folder"):
        tool(command, *paths)
    (tmp_path / "a").mkdir()
    with pytest.raises(ConfigError, match="neither a checkpoint nor a folder with one"):
        tool(command, *paths)
    with pytest.raises(ConfigError, match="the following arguments are required"):
        tool(command)
    with pytest.raises(ConfigError, match=f"{command} takes no configuration, found --train.steps"):
        tool(command, *paths, "--train.steps", "3")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_a_command_does(command: str) -> None:
    text = read_arguments([command, "--help"])
    assert isinstance(text, str)
    assert text.startswith(f"usage: python -m lepton_mpi {command} [-h]")
    assert len(text) > 300
