"""Weights on their way to other software and back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_data import CASES, TRANSFORMER, make_images, write_npz, write_text
from training_job import Commands, Trainer, only_message

CONTEXT = 8
STILL = ("--optimizer.name", "sgd", "--optimizer.lr", 0.0, "--train.steps", 1)  # what is evaluated is what was read


def gpt_options(text: Path) -> tuple[object, ...]:
    """Return the options of a small gpt on a text, without dropout."""
    data = ("--data.format", "text", "--data.path", text, "--data.test_fraction", 0.1)
    return (*data, "--model.family", "gpt", *TRANSFORMER, "--train.global_batch", 8, "--optimizer.lr", 0.01)


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a small gpt on text.txt beside its run folder, which tests only read."""
    folder = tmp_path_factory.mktemp("gpt")
    write_text(folder)
    options = (*gpt_options(folder / "text.txt"), "--train.steps", 5, "--run.dir", folder / "run")
    command = [sys.executable, "-m", "lepton_mpi.train", *map(str, options)]
    subprocess.run(command, check=True, capture_output=True, timeout=60, cwd=folder)
    return folder / "run"


def test_transformers_computes_the_same(gpt: Path, lepton: Commands, tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    text = gpt.parent / "text.txt"
    said = lepton(2, "export", gpt, "exported")
    assert said.startswith("wrote exported: gpt of step-000000005, names of transformers, ")
    ours = lepton.probabilities(1, gpt, text)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported").eval()
    tokens = np.frombuffer(text.read_bytes(), np.uint8).astype(np.int64)[: len(ours)]
    with torch.no_grad():
        logits = theirs(torch.from_numpy(tokens.reshape(-1, CONTEXT))).logits
    np.testing.assert_allclose(ours, torch.softmax(logits, dim=-1).reshape(len(ours), -1).numpy(), atol=1e-4)


def test_training_begins_at_exported_weights(gpt: Path, train: Trainer, lepton: Commands) -> None:
    lepton(3, "export", gpt, "weights.safetensors")
    options = (*gpt_options(gpt.parent / "text.txt"), *STILL)
    begun = train(3, *options, "--model.init", "weights.safetensors")
    expected = lepton.json(1, gpt)
    assert begun.summary["eval"]["loss"] == pytest.approx(expected["loss"], rel=1e-5)

    for wrong, expected_text in {
        ("weights.safetensors", "--model.width", 32): "weights.safetensors: tensor transformer.wte.weight: expected shape",
        ("weights.safetensors", "--model.num_layers", 2): "tensor transformer.h.1.",
        ("nothing.safetensors",): "nothing.safetensors: expected a file or folder of safetensors weights, there is none",
    }.items():
        refused = train(2, *options, "--model.init", *wrong, code=2)
        assert expected_text in only_message(refused.stderr)


def test_what_cannot_be_written_is_refused(gpt: Path, lepton: Commands, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("precious")
    assert "cannot export to .pt" in lepton.refused(2, "export", gpt, "model.pt")
    assert "this folder is not empty" in lepton.refused(2, "export", gpt, "full")
    assert "cannot write the weights" in lepton.refused(2, "export", gpt, "full/file/model.safetensors")


def test_onnx_and_safetensors_of_a_resnet(train: Trainer, lepton: Commands, tmp_path: Path) -> None:
    x, y = make_images()
    raw = 100 + 30 * x  # the graph normalises by itself
    write_npz(tmp_path, raw, y)
    options = CASES["resnet"].all_options
    job = train(2, *options, "--train.steps", 3)
    assert "our own names" in lepton(1, "export", job.folder, "model.safetensors")
    begun = train(3, *options, *STILL, "--model.init", "model.safetensors")
    assert begun.losses[0] < job.losses[0]

    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    assert "an ONNX graph that takes raw inputs" in lepton(2, "export", job.folder, "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: raw})
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    ours = lepton.probabilities(1, job.folder, "data.npz")
    np.testing.assert_allclose(ours, odds / odds.sum(axis=-1, keepdims=True), atol=1e-4)
