"""From the same weights and on the same batches, training follows PyTorch step by step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small_runs import HIDDEN_SIZES, configure, do_steps, made_splits, running

from lepton_mpi.config.schema import Config
from lepton_mpi.data.dataset import ArrayDataset
from lepton_mpi.data.formats.tokens import TokenWindows
from lepton_mpi.data.splits import DataSplits
from lepton_mpi.runtime.mpi import MPI, start_mpi
from lepton_mpi.train.averaging import averaged_weights
from lepton_mpi.train.inference import evaluate
from lepton_mpi.train.run import Run
from lepton_mpi.train.state import TrainState
from lepton_mpi.train.step import StepMetrics

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytest.importorskip("transformers")

from torch.nn.functional import cross_entropy  # noqa: E402 - needs torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn  # noqa: E402 - needs torch
from torch_training import TorchResult, batches_of, make_twin, our_weights, train_ours, train_twin  # noqa: E402 - needs torch

NUM_STEPS = 50
SGD = {"name": "sgd", "lr": 0.02, "momentum": 0.9, "weight_decay": 0.01, "schedule": "constant"}
ADAMW = {"name": "adamw", "lr": 2e-3, "weight_decay": 0.1, "schedule": "constant"}
# Where an activation is within rounding of 0, two programs may take different sides of a ReLU, and the gradients then differ by
# far more than rounding; a resnet has millions of them, and PyTorch in float32 leaves PyTorch in float64 just as soon. Small
# steps keep that below the tolerance; weight decay is large so that it still shows.
SLOW_SGD = SGD | {"lr": 1e-4, "weight_decay": 1.0}
SLOW_ADAMW = ADAMW | {"lr": 3e-5, "weight_decay": 5.0}


def images(num_samples: int, seed: int) -> ArrayDataset:
    """Return coloured noise [3, 16, 16] around a picture for each of four classes."""
    random, labels = np.random.default_rng(seed), np.arange(num_samples) % 4
    pictures = np.random.default_rng(3).normal(size=(4, 3, 16, 16))
    inputs = pictures[labels] + 0.5 * random.normal(size=(num_samples, 3, 16, 16))
    return ArrayDataset("images", (20 * inputs + 100).astype(np.float32), labels, 4)


def text(num_windows: int, context: int = 32) -> TokenWindows:
    """Return bytes of words drawn from a few, in windows."""
    words = np.random.default_rng(5).choice(["the ", "model ", "learns ", "bytes, ", "not ", "words.\n"], 5 * num_windows * context)
    tokens = np.frombuffer("".join(words).encode(), np.uint8)[: num_windows * context + 1]
    return TokenWindows("text", tokens, context, 256)


def padded_text(labelled: bool) -> DataSplits:
    """Return windows of text of all lengths, filled up with 0; the class is the kind of the first byte."""
    ids = text(44).read_ids(np.arange(44))
    ids[np.arange(32) >= np.random.default_rng(6).integers(2, 33, 44)[:, None]] = 0
    labels = ids[:, 0] % 3 if labelled else None
    parts = (ArrayDataset("texts", ids[part], None if labels is None else labels[part], 3) for part in (slice(40), slice(40, 44)))
    return DataSplits(*parts)


def values(kind: str) -> DataSplits:
    """Return inputs with two real numbers each, or two shares of yes."""
    random = np.random.default_rng(7)
    inputs = random.normal(size=(50, 13)).astype(np.float32)
    outputs = inputs @ random.normal(size=(13, 2)) + 0.3
    labels = (outputs if kind == "regression" else 1 / (1 + np.exp(-outputs))).astype(np.float32)
    return DataSplits(ArrayDataset("values", inputs, labels, 0), ArrayDataset("values", inputs[:9], labels[:9], 0))


SPLITS = {
    "mlp": made_splits(),
    "resnet": DataSplits(images(60, 4), images(30, 5)),  # the last batch of an epoch has 12
    "gpt": DataSplits(text(40), text(1)),
    "llama": DataSplits(text(40), text(1)),
    "bert": padded_text(labelled=True),
    "bert-masked": padded_text(labelled=False),
    "regression": values("regression"),
    "binary": values("binary"),
}
TRANSFORMER = {"num_layers": 3, "width": 32, "num_heads": 4, "context": 32}
MODELS: dict[str, dict[str, Any]] = {
    "mlp": {"hidden_sizes": HIDDEN_SIZES},
    "resnet": {"family": "resnet", "depth": 20, "width": 16},
    "gpt": {"family": "gpt"} | TRANSFORMER,
    "llama": {"family": "llama", "num_kv_heads": 2} | TRANSFORMER,
    "bert": {"family": "bert", "pad_token": 0, "vocab_size": 256} | TRANSFORMER,
    "bert-masked": {"family": "bert", "pad_token": 0, "task": "masked_language_model", "vocab_size": 256} | TRANSFORMER,
    "regression": {"hidden_sizes": HIDDEN_SIZES, "task": "regression"},
    "binary": {"hidden_sizes": HIDDEN_SIZES, "task": "binary"},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def comm() -> Iterator[MPI.Intracomm]:
    duplicate = start_mpi().Dup()
    yield duplicate
    duplicate.Free()


def small(family: str, **sections: dict[str, Any]) -> Config:
    return configure(model=MODELS[family], **({"optimizer": SGD} | sections))


# Second names of tensors that PyTorch's models list twice.
TIED = {"lm_head.weight", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}


@dataclass(frozen=True)
class Both:
    """What our run and PyTorch found, and the weights that they ended with."""

    ours: list[StepMetrics]
    theirs: TorchResult
    weights: dict[str, NDArray[Any]]
    their_weights: dict[str, NDArray[Any]]

    def require_equal(self, tolerance: float = 1e-3) -> None:
        """Require equal losses, norms of gradients and learning rates, and weights that differ by little beside the largest."""
        np.testing.assert_allclose([m.loss for m in self.ours], self.theirs.losses, rtol=tolerance)
        np.testing.assert_allclose([m.grad_norm for m in self.ours], self.theirs.grad_norms, rtol=20 * tolerance)
        np.testing.assert_allclose([m.lr for m in self.ours], self.theirs.lrs, rtol=1e-9)
        require_equal_weights(self.weights, self.their_weights, 2 * tolerance)


def require_equal_weights(ours: dict[str, NDArray[Any]], theirs: dict[str, NDArray[Any]], tolerance: float) -> None:
    assert ours.keys() <= theirs.keys()
    assert {name for name in theirs.keys() - ours.keys() if not name.endswith("num_batches_tracked")} <= TIED
    for name, found in ours.items():
        expected = theirs[name]
        if name.endswith("c_attn.bias"):  # the gradient of the keys' bias is 0 but for rounding, of which AdamW makes steps
            found, expected = (np.delete(x, np.s_[len(x) // 3 : 2 * len(x) // 3]) for x in (found, expected))
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(np.abs(expected).max(), 0.05), err_msg=name)


def train_both(comm: MPI.Intracomm, family: str, config: Config, folder: Path) -> Both:
    with running(comm, config, SPLITS[family]) as run:
        twin = make_twin(run, folder / "start")
        theirs = train_twin(twin, config, batches_of(run, NUM_STEPS))
        ours = train_ours(run, NUM_STEPS)
        weights = our_weights(run, folder / "end")
    return Both(ours, theirs, weights, as_arrays(twin.state_dict()))


def as_arrays(state: dict[str, Any]) -> dict[str, NDArray[Any]]:
    return {name: tensor.detach().numpy() for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("family", "optimizer", "tolerance"),
    [
        ("mlp", SGD, 1e-4),
        ("mlp", ADAMW, 1e-4),
        ("gpt", SGD, 1e-4),
        ("gpt", ADAMW, 1e-4),
        ("llama", ADAMW, 2e-4),
        ("bert", ADAMW, 2e-4),
        ("bert-masked", SGD, 2e-4),
        ("regression", ADAMW | {"lr": 0.01}, 1e-4),
        ("binary", ADAMW, 1e-4),
        ("resnet", SLOW_SGD, 1e-3),
        ("resnet", SLOW_ADAMW, 1e-3),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else str(value),
)
def test_losses_and_weights_follow(
    comm: MPI.Intracomm, tmp_path: Path, family: str, optimizer: dict[str, Any], tolerance: float
) -> None:
    both = train_both(comm, family, small(family, optimizer=optimizer), tmp_path)
    assert np.mean(both.theirs.losses[-8:]) < 0.95 * np.mean(both.theirs.losses[:4])  # there was something to learn
    both.require_equal(tolerance)


def test_a_resnet_that_learns_fast_has_the_loss_and_gradient_of_pytorch_at_every_step(comm: MPI.Intracomm, tmp_path: Path) -> None:
    config = small("resnet", optimizer=SGD)
    with running(comm, config, SPLITS["resnet"]) as run:
        state = TrainState()
        for step in range(8):
            twin = make_twin(run, tmp_path / str(step))  # from our weights of now: what rounding grows into starts anew
            theirs = train_twin(twin, config, batches_of(run, 1, step))
            state, (ours,) = do_steps(run, state, 1)
            assert ours.loss == pytest.approx(theirs.losses[0], rel=2e-5)
            assert ours.grad_norm == pytest.approx(theirs.grad_norms[0], rel=5e-3)
            statistics = {name: w for name, w in our_weights(run, tmp_path / "after").items() if "running" in name}
            assert len(statistics) == 2 * 21
            for name, found in statistics.items():
                np.testing.assert_allclose(found, as_arrays(twin.state_dict())[name], rtol=2e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("family", "sections"),
    [
        ("mlp", {"train": {"label_smoothing": 0.2, "class_weights": (0.5, 3.0, 1.0, 0.1, 2.0)}}),
        ("mlp", {"train": {"class_weights": (0.5, 3.0, 1.0, 0.1, 2.0), "micro_batches": 3}}),
        ("mlp", {"optimizer": SGD | {"clip_norm": 0.3}}),
        ("gpt", {"optimizer": ADAMW | {"clip_norm": 0.5}}),
        ("mlp", {"optimizer": ADAMW | {"schedule": "cosine", "warmup_steps": 7, "decay_steps": NUM_STEPS - 7, "min_lr": 1e-4}}),
        ("gpt", {"optimizer": SGD, "train": {"label_smoothing": 0.1}}),
        ("mlp", {"optimizer": SGD, "train": {"micro_batches": 4}}),
        ("gpt", {"optimizer": ADAMW, "train": {"micro_batches": 4}}),
    ],
    ids=[
        "smoothing-and-weights",
        "weights-over-micro-batches",
        "clipping",
        "gpt-clipping",
        "cosine",
        "gpt-smoothing",
        "micro-batches",
        "gpt-micro-batches",
    ],
)
def test_settings_follow(comm: MPI.Intracomm, tmp_path: Path, family: str, sections: dict[str, Any]) -> None:
    both = train_both(comm, family, small(family, **sections), tmp_path)
    assert "clip_norm" not in sections.get("optimizer", {}) or min(both.theirs.grad_norms) > 0.5  # always clips
    both.require_equal(2e-4)


@pytest.mark.parametrize("family", ["mlp", "gpt"])
def test_accumulated_gradients_are_those_of_the_whole_batch(comm: MPI.Intracomm, family: str) -> None:
    losses = []
    for micro_batches in (1, 4):
        with running(comm, small(family, train={"micro_batches": micro_batches}), SPLITS[family]) as run:
            losses.append([m.loss for m in train_ours(run, NUM_STEPS)])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


@pytest.mark.parametrize(("family", "optimizer"), [("mlp", ADAMW), ("resnet", SLOW_ADAMW)])
def test_averaged_weights_follow(comm: MPI.Intracomm, tmp_path: Path, family: str, optimizer: dict[str, Any]) -> None:
    config = small(family, optimizer=optimizer, train={"ema_decay": 0.9})
    with running(comm, config, SPLITS[family]) as run:
        twin = make_twin(run, tmp_path / "start")
        average = AveragedModel(twin, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
        average.update_parameters(twin)  # PyTorch's begins at the first weights that it is told of
        train_twin(twin, config, batches_of(run, NUM_STEPS), lambda: average.update_parameters(twin))
        train_ours(run, NUM_STEPS)
        with averaged_weights(run.network):
            require_equal_weights(our_weights(run, tmp_path / "average"), as_arrays(average.module.state_dict()), 2e-3)
        require_equal_weights(our_weights(run, tmp_path / "end"), as_arrays(twin.state_dict()), 2e-3)
        assert run.test_loader is not None
        found = evaluate(run.network, run.test_loader)
        assert found.values["loss"] == pytest.approx(loss_on_test_set(average.module.eval(), run), rel=1e-3)
        assert found.values["loss"] != pytest.approx(loss_on_test_set(twin.eval(), run), rel=1e-2)  # the average is another model


def loss_on_test_set(model: Any, run: Run) -> float:
    """Return PyTorch's mean loss on the test set."""
    assert run.test_loader is not None
    batch = run.test_loader.batch(0, 0)
    with torch.no_grad():
        return float(cross_entropy(model(torch.from_numpy(batch.inputs[0])), torch.from_numpy(batch.labels[0])))
