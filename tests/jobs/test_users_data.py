"""Training on a user's own files, in every format."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from training_job import Trainer

import lepton_mpi.runtime.mpi  # noqa: F401 - or h5py, where it is parallel, would start MPI in this process

Arrays = tuple[np.ndarray, np.ndarray]
Options = tuple[object, ...]


def make_samples() -> Arrays:
    """Return 300 images of 4 x 4 pixels, 0 .. 255, of 3 classes that a line can tell apart."""
    random = np.random.default_rng(7)
    labels = random.integers(0, 3, 300)
    centres = random.uniform(50, 200, (3, 4, 4))
    return np.clip(centres[labels] + random.normal(0, 25, (300, 4, 4)), 0, 255).astype(np.uint8), labels


def write_idx(folder: Path, x: np.ndarray, y: np.ndarray) -> Options:
    inputs, labels = folder / "images-idx3-ubyte.gz", folder / "labels-idx1-ubyte"
    inputs.write_bytes(gzip.compress(struct.pack(">4B3I", 0, 0, 8, 3, *x.shape) + x.tobytes()))
    labels.write_bytes(struct.pack(">4BI", 0, 0, 8, 1, len(y)) + y.astype(np.uint8).tobytes())
    return "--data.path", inputs, "--data.labels_path", labels, "--data.max_shift", 1


def write_npy(folder: Path, x: np.ndarray, y: np.ndarray) -> Options:
    options: list[object] = []
    for prefix, part in (("", slice(60, None)), ("test_", slice(60))):
        np.save(folder / f"{prefix}x.npy", x[part])
        np.save(folder / f"{prefix}y.npy", y[part])
        options += [f"--data.{prefix}path", folder / f"{prefix}x.npy", f"--data.{prefix}labels_path", folder / f"{prefix}y.npy"]
    return tuple(options)


def write_npz(folder: Path, x: np.ndarray, y: np.ndarray) -> Options:
    np.savez_compressed(folder / "data.npz", images=x.astype(np.float64), classes=y.astype(np.int8))
    return "--data.path", folder / "data.npz", "--data.inputs_name", "images", "--data.labels_name", "classes"


def write_csv(folder: Path, x: np.ndarray, y: np.ndarray) -> Options:
    names = [f"pixel{i}" for i in range(16)]
    rows = [",".join(map(str, [*row[:3], label, *row[3:]])) for row, label in zip(x.reshape(-1, 16), y, strict=True)]
    (folder / "data.csv").write_text("\n".join([",".join([*names[:3], "digit", *names[3:]]), *rows, ""]))
    return "--data.path", folder / "data.csv", "--data.label_column", "digit", "--data.normalise", "feature"


def write_hdf5(folder: Path, x: np.ndarray, y: np.ndarray) -> Options:
    import h5py

    with h5py.File(folder / "data.h5", "w") as file:
        file.create_dataset("train/x", data=x, chunks=(32, 4, 4), compression="gzip")
        file["train/y"] = y
    return "--data.path", folder / "data.h5", "--data.inputs_name", "train/x", "--data.labels_name", "train/y"


WRITERS: dict[str, Callable[[Path, np.ndarray, np.ndarray], Options]] = {
    "idx": write_idx,
    "npy": write_npy,
    "npz": write_npz,
    "csv": write_csv,
    "hdf5": write_hdf5,
}


@pytest.mark.parametrize("name", WRITERS)
def test_format(train: Trainer, tmp_path: Path, name: str) -> None:
    options = WRITERS[name](tmp_path, *make_samples())
    sizes = ("--model.hidden_sizes", "32,16", "--train.epochs", 8, "--train.global_batch", 20, "--optimizer.lr", 0.01)
    job = train(3, *sizes, "--data.format", name, *options)
    assert "240 training samples" in job.stdout
    assert job.summary["eval"]["accuracy"] > 0.9
    assert sum(metrics["support"] for metrics in job.summary["eval"]["per_class"]) == 60
