"""A small run of every model family and task: its configuration, and data to go with it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from small_runs import configure

from lepton_mpi.config.schema import Config
from lepton_mpi.data.dataset import ArrayDataset
from lepton_mpi.data.formats.tokens import TokenWindows
from lepton_mpi.data.splits import DataSplits

NUM_TRAIN, NUM_TEST = 20, 7
VOCABULARY, CONTEXT, PADDING = 31, 8, 0
SGD = {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, "schedule": "constant"}
# Heads enough for three shards, blocks enough for three stages.
TRANSFORMER = {"num_layers": 3, "width": 12, "num_heads": 3, "context": CONTEXT}
IMAGES = {"width": 4}


def both(inputs: NDArray[Any], labels: NDArray[Any] | None, num_classes: int) -> DataSplits:
    parts = (slice(0, NUM_TRAIN), slice(NUM_TRAIN, None))
    train, test = (ArrayDataset("made", inputs[p], None if labels is None else labels[p], num_classes) for p in parts)
    return DataSplits(train, test)


def images(num_classes: int, segmented: bool = False) -> DataSplits:
    random, num = np.random.default_rng(6), NUM_TRAIN + NUM_TEST
    inputs = random.normal(size=(num, 3, 8, 8)).astype(np.float32)
    labels = random.integers(0, num_classes, (num, 8, 8) if segmented else num)
    return both(inputs, labels, num_classes)


def text() -> DataSplits:
    tokens = np.random.default_rng(7).integers(0, VOCABULARY, (NUM_TRAIN + NUM_TEST) * CONTEXT + 1).astype(np.uint8)
    tokens[::2] = 3  # something to learn
    return DataSplits(*TokenWindows("text", tokens, CONTEXT, VOCABULARY).split(NUM_TEST / (NUM_TRAIN + NUM_TEST)))


def padded_texts(labelled: bool) -> DataSplits:
    random, num = np.random.default_rng(8), NUM_TRAIN + NUM_TEST
    ids = random.integers(1, VOCABULARY, (num, CONTEXT))
    ids[np.arange(CONTEXT) >= random.integers(1, CONTEXT + 1, num)[:, None]] = PADDING
    return both(ids, ids[:, 0] % 3 if labelled else None, 3)


def pairs(kind: str) -> DataSplits:
    random, num = np.random.default_rng(9), NUM_TRAIN + NUM_TEST
    ids = np.column_stack([random.integers(0, 7, num), random.integers(0, 11, num)])
    ids[0] = (6, 10)
    scores = (ids[:, 0] + ids[:, 1]) / 8 - 1
    labels = {"regression": scores, "binary": (scores > 0).astype(float), "ranking": None}[kind]
    return both(ids, labels, 0)


def values() -> DataSplits:
    random, num = np.random.default_rng(10), NUM_TRAIN + NUM_TEST
    inputs = random.normal(size=(num, 7)).astype(np.float32)
    return both(inputs, inputs @ random.normal(size=(7, 2)) + 1, 0)


def run_of(
    model: dict[str, Any], splits: DataSplits, optimizer: dict[str, Any] | None = None, **train: Any
) -> tuple[Config, DataSplits]:
    # Small buckets: even these models have several.
    sections = {"optimizer": SGD | (optimizer or {}), "reduce": {"bucket_mib": 0.001}, "train": {"global_batch": 8, **train}}
    return configure(model={"hidden_sizes": (9, 6, 5)} | model, **sections), splits


CASES: dict[str, tuple[Config, DataSplits]] = {
    "linear": run_of({"family": "linear", "task": "regression"}, values()),
    "mlp": run_of({"family": "mlp", "task": "regression"}, values(), {"name": "adamw", "lr": 0.01}, ema_decay=0.5),
    "resnet": run_of({"family": "resnet", "depth": 20} | IMAGES, images(4), {"lr": 0.002}, ema_decay=0.5),
    "unet": run_of({"family": "unet", "depth": 3} | IMAGES, images(3, segmented=True), {"lr": 0.01}, micro_batches=2),
    "gpt": run_of({"family": "gpt", "dropout": 0.2} | TRANSFORMER, text(), {"clip_norm": 1.0}, ema_decay=0.5),
    "llama": run_of(
        {"family": "llama"} | TRANSFORMER | {"num_heads": 6, "num_kv_heads": 3, "width": 24, "tied": "yes"},
        text(),
        {"clip_norm": 1.0},
    ),
    "bert": run_of(
        {"family": "bert", "pad_token": PADDING, "dropout": 0.2, "vocab_size": VOCABULARY} | TRANSFORMER,
        padded_texts(labelled=True),
        label_smoothing=0.1,
        class_weights=(1.0, 0.5, 2.0),
    ),
    "bert-masked": run_of(
        {"family": "bert", "task": "masked_language_model", "pad_token": PADDING, "vocab_size": VOCABULARY + 1} | TRANSFORMER,
        padded_texts(labelled=False),
        {"clip_norm": 1.0},
    ),
    "recommender-regression": run_of(
        {"family": "recommender", "task": "regression", "interaction": "product", "embedding_size": 5}, pairs("regression")
    ),
    "recommender-binary": run_of(
        {"family": "recommender", "task": "binary", "embedding_size": 5}, pairs("binary"), micro_batches=2
    ),
    "recommender-ranking": run_of({"family": "recommender", "task": "ranking", "embedding_size": 5}, pairs("ranking")),
}
