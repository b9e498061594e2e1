"""Small data sets that each family learns in a few steps, and the options of small models for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Arrays = tuple[np.ndarray, np.ndarray]

NUM_SAMPLES = 60
NUM_CLASSES = 3
NUM_TOKENS = 11
NPZ = ("--data.format", "npz", "--data.path", "data.npz", "--data.test_fraction", 0.25)
TEXT = ("--data.format", "text", "--data.path", "text.txt", "--data.test_fraction", 0.1)
TRANSFORMER = ("--model.num_layers", 1, "--model.width", 16, "--model.num_heads", 2, "--model.context", 8)


def make_images(shape: tuple[int, ...] = (3, 8, 8)) -> Arrays:
    """Return noisy images whose brightness tells the class."""
    random = np.random.default_rng(1)
    labels = np.arange(NUM_SAMPLES) % NUM_CLASSES
    noise = random.normal(size=(NUM_SAMPLES, *shape)).astype(np.float32)
    return noise + 2 * labels.reshape(-1, *(1 for _ in shape)).astype(np.float32), labels


def make_masks() -> Arrays:
    """Return noisy images of 8 x 8 pixels whose left part, of another width each, is bright, and the class of each pixel."""
    random = np.random.default_rng(2)
    labels = (np.arange(8) < random.integers(2, 7, (NUM_SAMPLES, 1, 1))).repeat(8, axis=1).astype(np.int64)
    return (labels + random.normal(0, 0.2, labels.shape)).astype(np.float32)[:, None], labels


def make_sentences() -> Arrays:
    """Return sequences of 8 tokens, token 0 for padding, whose first token tells the class."""
    random = np.random.default_rng(3)
    tokens = random.integers(1, NUM_TOKENS, (NUM_SAMPLES, 8))
    tokens[::4, 5:] = 0
    return tokens, tokens[:, 0] % NUM_CLASSES


def make_ratings() -> Arrays:
    """Return pairs of 7 users and 9 items, and how much the first likes the second."""
    random = np.random.default_rng(4)
    pairs = np.stack([random.integers(0, 7, NUM_SAMPLES), random.integers(0, 9, NUM_SAMPLES)], axis=1)
    pairs[:2] = (6, 8), (0, 0)
    return pairs, (pairs[:, 0] * 0.5 - pairs[:, 1] * 0.25).astype(np.float32)


def write_npz(folder: Path, x: np.ndarray, y: np.ndarray) -> None:
    """Write data.npz."""
    np.savez(folder / "data.npz", x=x, y=y)


def write_text(folder: Path, num_words: int = 400) -> None:
    """Write text.txt, in which every word follows from the one before."""
    words = ["one ", "two ", "three ", "four "]
    (folder / "text.txt").write_text("".join(words[i * i % 7 % 4] for i in range(num_words)))


@dataclass(frozen=True)
class Case:
    """A family with data for it.

    Attributes:
        make: makes the arrays of data.npz; None: text.txt.
        options: of the command line.
        metrics: names of the task's metrics, the main one first.
        header: first line of its predictions.
        num_rows: lines of predictions for all samples.
    """

    make: Callable[[], Arrays] | None
    options: tuple[object, ...]
    metrics: tuple[str, ...]
    header: str
    num_rows: int

    def write(self, folder: Path) -> None:
        """Write the data into a folder, which is where jobs run."""
        if self.make is None:
            write_text(folder)
        else:
            write_npz(folder, *self.make())

    @property
    def all_options(self) -> tuple[object, ...]:
        """Options of a short run on the data, whose learning rate does not depend on its length."""
        data = TEXT if self.make is None else NPZ
        return (*data, "--train.global_batch", 12, "--optimizer.lr", 0.01, "--optimizer.schedule", "constant", *self.options)

    @property
    def input(self) -> str:
        """Name of the file with all samples."""
        return "text.txt" if self.make is None else "data.npz"


CLASSES = ("accuracy", "precision", "recall", "f1", "loss")
LANGUAGE = ("loss", "perplexity", "token_accuracy")
CLASS, VALUE, TOKEN = "index,class,probability", "index,value", "index,position,class,probability"
BERT = ("--model.family", "bert", *TRANSFORMER, "--model.pad_token", 0, "--model.dropout", 0.1)
RECOMMENDER = ("--model.family", "recommender", "--model.hidden_sizes", 8, "--model.embedding_size", 4)
UNET = ("--model.family", "unet", "--model.depth", 2, "--model.width", 4)
TEXT_WINDOWS = sum(len(["one ", "two ", "three ", "four "][i * i % 7 % 4]) for i in range(400)) // 8

CASES = {
    "mlp": Case(make_images, ("--model.hidden_sizes", "8,8"), CLASSES, CLASS, NUM_SAMPLES),
    "resnet": Case(make_images, ("--model.family", "resnet", "--model.width", 4), CLASSES, CLASS, NUM_SAMPLES),
    "unet": Case(make_masks, UNET, ("pixel_accuracy", "mean_iou", "loss"), "index,position_0,position_1,class,probability", 3840),
    "gpt": Case(None, ("--model.family", "gpt", *TRANSFORMER, "--model.dropout", 0.1), LANGUAGE, TOKEN, 8 * TEXT_WINDOWS),
    "llama": Case(None, ("--model.family", "llama", *TRANSFORMER), LANGUAGE, TOKEN, 8 * TEXT_WINDOWS),
    "bert": Case(make_sentences, BERT, CLASSES, CLASS, NUM_SAMPLES),
    "bert-masked": Case(make_sentences, (*BERT, "--model.task", "masked_language_model"), LANGUAGE, TOKEN, 8 * NUM_SAMPLES),
    "recommender": Case(make_ratings, RECOMMENDER, ("rmse", "mae", "r2"), VALUE, NUM_SAMPLES),
    "ranking": Case(
        make_ratings,
        (*RECOMMENDER, "--model.task", "ranking", "--model.interaction", "product", "--optimizer.lr", 0.1),
        ("pair_accuracy", "hit_rate_at_10", "ndcg_at_10", "loss"),
        "index,score",
        NUM_SAMPLES,
    ),
}
