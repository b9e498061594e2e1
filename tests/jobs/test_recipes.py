"""The recipes of examples/, in short form: each learns, and takes files of the real data set that its page names."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from training_job import ENVIRONMENT, Trainer

from lepton_mpi.config.keys import list_keys
from lepton_mpi.config.toml_file import read_toml

Options = tuple[object, ...]

EXAMPLES = Path(__file__).parents[2] / "examples"
TABLE = (EXAMPLES.parent / "docs" / "recipes.md").read_text()
STEADY = ("--optimizer.schedule", "constant", "--optimizer.warmup_steps", 0, "--data.test_samples", 16)
TRANSFORMER = ("--model.num_layers", 1, "--model.width", 32, "--model.num_heads", 2)


def num(samples: int, steps: int, batch: int) -> Options:
    """Return the options for that many samples, where they are made, steps, and samples a step."""
    return ("--data.num_samples", samples, "--train.steps", steps, "--train.global_batch", batch)


# What makes each recipe short: data, sizes and steps.
RECIPES: dict[str, Options] = {
    "cell_segmentation/recipe.toml": ("--model.width", 4, *num(samples=40, steps=8, batch=4)),
    "credit_risk/recipe.toml": num(samples=4000, steps=40, batch=256),
    "image_classification/colour.toml": ("--model.width", 4, "--optimizer.lr", 0.03, *num(samples=200, steps=16, batch=16)),
    "image_classification/recipe.toml": ("--model.width", 4, *num(samples=1, steps=24, batch=32)),
    "language_model/recipe.toml": (*TRANSFORMER, *num(samples=1, steps=40, batch=8)),
    "linear_regression/recipe.toml": num(samples=2000, steps=30, batch=128),
    "recommender/ranking.toml": ("--optimizer.lr", 0.03, *num(samples=20000, steps=60, batch=512)),
    "recommender/recipe.toml": ("--optimizer.lr", 0.03, *num(samples=20000, steps=60, batch=512)),
    "text_classification/recipe.toml": ("--data.synthetic_shape", 16, *TRANSFORMER, *num(samples=2000, steps=80, batch=64)),
    "text_classification/source_text.toml": (
        "--optimizer.lr",
        3e-3,
        "--model.dropout",
        0,
        *TRANSFORMER,
        *num(samples=1, steps=50, batch=64),
    ),
}
# Has a page and tests of its own.
OWN_FAMILY = "own_family/config.toml"


def options(name: str) -> Options:
    """Return the configuration file of a recipe and what makes it short."""
    return (EXAMPLES / name, *STEADY, *RECIPES[name])


def test_no_recipe_is_left_out() -> None:
    found = {str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*.toml")}
    assert found == {*RECIPES, OWN_FAMILY}


@pytest.mark.parametrize("name", [*RECIPES, OWN_FAMILY])
def test_all_keys_are_known(name: str) -> None:
    values = read_toml(EXAMPLES / name, list_keys())
    assert {"model", "data", "optimizer", "train"} <= set(values)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_explained(name: str) -> None:
    folder = name.split("/")[0]
    page = (EXAMPLES / folder / "README.md").read_text()
    assert f"mpirun -n 2 python -m lepton_mpi.train examples/{name}" in page
    assert read_toml(EXAMPLES / name, list_keys())["run"]["dir"] in page
    assert f"[{name.removesuffix('/recipe.toml')}](../examples/{folder}/README.md)" in TABLE


@pytest.mark.parametrize("page", sorted(EXAMPLES.glob("*/README.md")), ids=lambda page: page.parent.name)
def test_pages_name_keys_that_exist(page: Path) -> None:
    keys = list_keys()
    named = re.findall(r"(?:--|`)(grid|run|model|data|optimizer|train|reduce|checkpoint)\.([a-z_0-9]+)", page.read_text())
    assert named
    assert [f"{section}.{key}" for section, key in named if key not in keys[section]] == []


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_learns(train: Trainer, tmp_path: Path, name: str) -> None:
    if name.endswith("source_text.toml"):
        write_source_text(tmp_path / "runs" / "source_text" / "data")
    job = train(2, *options(name))
    losses, part = job.losses, len(job.losses) // 4
    assert (job.messages, job.summary["grid"]["data"]) == ([], 2)
    assert np.mean(losses[-part:]) < 0.95 * np.mean(losses[:part]), losses


def test_risk_is_judged_by_the_area_under_the_curve(train: Trainer) -> None:
    job = train(2, *options("credit_risk/recipe.toml"), "--data.test_samples", 0, "--train.steps", 80)
    assert "finished: test auc 0." in job.stdout  # early stopping and the best checkpoint go by what is shown
    assert job.summary["eval"]["auc"] > 0.7


def write_source_text(folder: Path) -> None:
    """Make the data of source_text.toml as its page says."""
    program = EXAMPLES / "text_classification" / "source_text.py"
    subprocess.run([sys.executable, program, folder], env={**ENVIRONMENT}, check=True, stdout=subprocess.DEVNULL)
    with np.load(folder / "train.npz") as train, np.load(folder / "test.npz") as test:
        assert {*train["y"]} == {*test["y"]} == set(range(8))


def write_mnist(folder: Path) -> Options:
    """Write images of the shape of MNIST's."""
    random, arguments = np.random.default_rng(0), []
    for part, prefix, count in (("train", "", 64), ("t10k", "test_", 16)):
        images, labels = random.integers(0, 256, (count, 28, 28), np.uint8), (np.arange(count) % 10).astype(np.uint8)
        paths = folder / f"{part}-images-idx3-ubyte", folder / f"{part}-labels-idx1-ubyte"
        paths[0].write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, *images.shape) + images.tobytes())
        paths[1].write_bytes(struct.pack(">4BI", 0, 0, 8, 1, count) + labels.tobytes())
        arguments += [f"--data.{prefix}path", paths[0], f"--data.{prefix}labels_path", paths[1]]
    return "--data.format", "idx", *arguments


def write_cifar(folder: Path) -> Options:
    random = np.random.default_rng(1)
    for name, count in (("data_batch_1", 32), ("data_batch_2", 32), ("test_batch", 16)):
        records = random.integers(0, 256, (count, 3073), np.uint8)
        records[:, 0] = np.arange(count) % 10
        records.tofile(folder / f"{name}.bin")
    return "--data.format", "cifar10", "--data.path", folder


def write_masks(folder: Path) -> Options:
    random = np.random.default_rng(2)
    masks = random.integers(0, 2, (24, 32, 32))
    np.savez(folder / "cells.npz", images=masks * 100 + random.integers(0, 99, masks.shape), masks=masks)
    names = ("--data.inputs_name", "images", "--data.labels_name", "masks")
    return "--data.format", "npz", "--data.path", folder / "cells.npz", *names


def write_tokens(folder: Path) -> Options:
    """Write two files of tokens, the largest in the first."""
    random = np.random.default_rng(3)
    for name, count in (("train.bin", 20000), ("test.bin", 2000)):
        tokens = random.integers(0, 500, count)
        tokens[0] = 500 if name == "train.bin" else 0
        tokens.astype("<u2").tofile(folder / name)
    return "--data.format", "tokens", "--data.path", folder / "train.bin", "--data.test_path", folder / "test.bin"


def write_table(folder: Path) -> Options:
    random = np.random.default_rng(4)
    rows = [
        f"{value:.3f},{label},{60 * value:.1f}" for value, label in zip(random.random(600), random.integers(0, 2, 600), strict=True)
    ]
    (folder / "credits.csv").write_text("\n".join(["income,default,age", *rows, ""]))
    return "--data.format", "csv", "--data.path", folder / "credits.csv", "--data.label_column", "default"


def write_movielens(folder: Path) -> Options:
    random = np.random.default_rng(5)
    users, movies, stars = random.integers(1, 40, 900), random.integers(1, 3000, 900), random.integers(1, 11, 900) / 2
    rows = [f"{user},{movie},{rating},964982703" for user, movie, rating in zip(users, movies, stars, strict=True)]
    (folder / "ratings.csv").write_text("\n".join(["userId,movieId,rating,timestamp", *rows, ""]))
    return "--data.format", "movielens", "--data.path", folder


REAL: list[tuple[str, Callable[[Path], Options], str]] = [
    ("image_classification/recipe.toml", write_mnist, "64 training samples"),
    ("image_classification/colour.toml", write_cifar, "64 training samples"),
    ("cell_segmentation/recipe.toml", write_masks, "20 training samples"),
    ("language_model/recipe.toml", write_tokens, "501 tokens"),
    ("credit_risk/recipe.toml", write_table, "training samples"),
    ("recommender/recipe.toml", write_movielens, "39 users"),
    ("recommender/ranking.toml", write_movielens, "39 users"),
]


@pytest.mark.parametrize(("name", "write", "shown"), REAL, ids=lambda value: value if isinstance(value, str) else value.__name__)
def test_the_real_data_set_fits(train: Trainer, tmp_path: Path, name: str, write: Callable[[Path], Options], shown: str) -> None:
    job = train(2, *options(name), *write(tmp_path), "--train.steps", 2, "--train.global_batch", 8)
    assert job.messages == []
    assert shown in job.stdout
    assert len(job.losses) == 2
