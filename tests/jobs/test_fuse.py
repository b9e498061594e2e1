"""Several checkpoints or runs as one model: averaged weights, and averaged predictions."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_data import CASES, NUM_SAMPLES, make_images, write_npz
from training_job import Commands, Trainer, read_weights

OPTIONS = CASES["mlp"].all_options


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a small mlp for 6 steps with 3 checkpoints; the data lie beside its run folder."""
    folder = tmp_path_factory.mktemp("finished")
    write_npz(folder, *make_images())
    options = (*OPTIONS, "--train.steps", 6, "--checkpoint.every_steps", 2, "--run.dir", "run")
    command = [sys.executable, "-m", "lepton_mpi.train", *map(str, options)]
    subprocess.run(command, check=True, capture_output=True, timeout=60, cwd=folder)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """Give a copy of the trained run, with its data in the current directory of jobs."""
    shutil.copy(finished / "data.npz", tmp_path)
    return Path(shutil.copytree(finished / "run", tmp_path / "run"))


def checkpoint(run: Path, step: int) -> Path:
    """Return the folder of a checkpoint."""
    return run / "checkpoints" / f"step-{step:09d}"


def assert_mixture(found: Path, parts: dict[Path, float]) -> None:
    """Check that the weights of a checkpoint are those of others, times their shares."""
    weights = {path: read_weights(path) for path in parts}
    for name, values in read_weights(found).items():
        expected = sum(share * weights[path][name].astype(np.float64) for path, share in parts.items())
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-7)


def test_average_and_ema_of_the_checkpoints_of_a_run(run: Path, lepton: Commands, tmp_path: Path) -> None:
    said = lepton(3, "fuse", run, "--output", "fused")
    assert said.startswith("fused 3 of 3 checkpoint(s) (average: ")
    assert_mixture(checkpoint(tmp_path / "fused", 6), {checkpoint(run, step): 1 / 3 for step in (2, 4, 6)})

    lepton(2, "fuse", run, "--output", "faded", "--method", "ema", "--decay", 0.25, "--last", 2)
    assert_mixture(checkpoint(tmp_path / "faded", 6), {checkpoint(run, 4): 0.25, checkpoint(run, 6): 0.75})
    found = lepton.json(3, "faded")
    assert (found["checkpoint"], found["num_samples"]) == ("step-000000006", NUM_SAMPLES // 4)
    assert len(lepton.probabilities(2, "faded", "data.npz")) == NUM_SAMPLES
    assert "our own names" in lepton(2, "export", "faded", "faded.safetensors")


def test_greedy_is_never_worse_than_the_best(run: Path, train: Trainer, lepton: Commands) -> None:
    others = [train(2, *OPTIONS, "--train.steps", 4, "--train.seed", seed) for seed in (1, 2)]
    sources = (run, *(other.folder for other in others))
    losses = [lepton.json(1, run)["loss"], *(other.summary["eval"]["loss"] for other in others)]
    said = lepton(2, "fuse", *sources, "--output", "soup", "--method", "greedy", "--metric", "loss").splitlines()
    assert len(said) == len(sources) + 2
    together = lepton.json(1, "soup")["loss"]
    assert together <= min(losses) + 1e-6
    assert said[-2] == f"together: loss {together:.4f}"
    assert "'bleu'" in lepton.refused(2, "fuse", *sources, "--output", "x", "--method", "greedy", "--metric", "bleu")


def test_what_does_not_fit_is_refused(run: Path, train: Trainer, lepton: Commands, tmp_path: Path) -> None:
    wider = train(1, *OPTIONS, "--model.hidden_sizes", "9,8", "--train.steps", 1)
    x, y = make_images()
    np.savez(tmp_path / "other.npz", x=3 * x, y=y)
    rescaled = train(1, *OPTIONS, "--data.path", "other.npz", "--train.steps", 1)
    assert "layers.0" in lepton.refused(2, "fuse", run, wider.folder, "--output", "x")
    assert "normalised otherwise" in lepton.refused(2, "fuse", run, rescaled.folder, "--output", "x")
    taken = lepton.refused(2, "fuse", run, "--output", wider.folder)
    assert "expected a folder that does not exist yet or is empty" in taken
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(run / "config.toml", empty)
    assert "no checkpoint" in lepton.refused(2, "fuse", empty, "--output", "x")
    with (checkpoint(run, 4) / "data.h5").open("r+b") as file:
        file.seek(-100, 2)
        file.write(bytes([7] * 100))
    assert "step-000000004" in lepton.refused(2, "fuse", run, "--output", "x")
    assert not (tmp_path / "x" / "checkpoints").exists()


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="needs root, to mount a small file system")
def test_a_full_disk_leaves_nothing_behind(run: Path, lepton: Commands, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        assert "No space left on device" in lepton.refused(2, "fuse", run, "--output", small / "fused")
        assert list(small.iterdir()) == []
        (small / "filler").write_bytes(bytes(3 * 4096))
        assert "No space left on device" in lepton.refused(2, "export", run, small / "model.safetensors")
        assert [path.name for path in small.iterdir()] == ["filler"]
    finally:
        subprocess.run(["umount", small], check=True)


def test_an_ensemble_averages_probabilities(run: Path, train: Trainer, lepton: Commands, tmp_path: Path) -> None:
    other = train(1, *OPTIONS, "--model.hidden_sizes", "5", "--train.steps", 5, "--train.seed", 1)
    single = [lepton.probabilities(1, folder, "data.npz") for folder in (run, other.folder)]
    both = lepton.probabilities(3, run, "data.npz", "--ensemble", other.folder)
    np.testing.assert_allclose(both, np.mean(single, axis=0), atol=2e-6)  # six digits are printed
    _, labels = make_images()
    found = lepton.json(2, run, "--ensemble", other.folder, "--data.test_path", "data.npz")
    assert found["accuracy"] == pytest.approx(np.mean(both.argmax(axis=1) == labels))
    assert found["loss"] == pytest.approx(-np.mean(np.log(both[np.arange(NUM_SAMPLES), labels])), abs=1e-4)

    np.savez(tmp_path / "values.npz", x=make_images()[0], y=labels.astype(np.float32))
    regression = train(1, *OPTIONS, "--model.task", "regression", "--data.path", "values.npz", "--train.steps", 1)
    message = lepton.refused(2, "evaluate", run, "--ensemble", regression.folder)
    assert "expected a model for classification" in message
