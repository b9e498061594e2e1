"""Every configuration key: its section, type, default, bounds, and the sentence that documents it.

Sections are frozen dataclasses; each object of the program receives its own section, never
the whole. `--help`, the TOML reader and the checks all read the metadata given here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def key(default: Any, text: str, *, choices: tuple[str, ...] = (), low: float | None = None, high: float | None = None) -> Any:
    """Declare a configuration key: default, documentation, and what values it admits.

    `low` and `high` are inclusive bounds of numbers (of every element of a list).
    """
    metadata = {"text": text, "choices": choices, "low": low, "high": high}
    if isinstance(default, list | tuple):
        return field(default_factory=lambda: tuple(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class RunConfig:
    """Where a run lives and what it runs on."""

    name: str = key("", "name of the run folder under runs/; empty: made from model, data and time")
    dir: str = key("", "run folder; empty: runs/<name>. A folder that holds checkpoints of the same model is resumed")
    fresh: bool = key(False, "refuse to resume: an error if the run folder already holds checkpoints")
    device: str = key("cpu", "where arrays live", choices=("cpu", "gpu"))
    threads: int = key(0, "threads a rank for linear algebra; 0: cores of the node divided by its ranks", low=0)
    progress: str = key(
        "auto", "progress display; auto: a bar on a terminal, lines otherwise", choices=("auto", "bar", "lines", "off")
    )
    progress_every_s: float = key(5.0, "seconds between progress lines", low=0.1)
    log_level: str = key("INFO", "level of the log files", choices=("DEBUG", "INFO", "WARNING", "ERROR"))


@dataclass(frozen=True)
class GridConfig:
    """Sizes of the process grid; their product is the number of ranks."""

    data: int = key(0, "ranks along the data axis, which splits batches; 0: chosen", low=0)
    stages: int = key(0, "pipeline stages, which split the list of layers; 0: chosen", low=0)
    shards: int = key(0, "shards, which split inside a layer; 0: chosen", low=0)
    ranks_per_node: int = key(
        0, "treat this many consecutive ranks as one node (for tests, or one group a socket); 0: ask MPI who shares memory", low=0
    )


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    family: str = key("mlp", "model family", choices=("mlp",))
    hidden_sizes: tuple[int, ...] = key((1000, 512, 256, 128), "widths of the hidden layers of an mlp", low=1)


@dataclass(frozen=True)
class DataConfig:
    """What to train on."""

    format: str = key(
        "digits",
        "format of the data; digits ships inside the package",
        choices=("digits", "idx", "npz", "npy", "csv", "hdf5"),
    )
    path: str = key("", "file with the training inputs (and labels, where the format holds both)")
    labels_path: str = key("", "file with the training labels (idx, npy)")
    test_path: str = key("", "file with the test inputs; empty: test_fraction of the training file is held out")
    test_labels_path: str = key("", "file with the test labels (idx, npy)")
    label_column: str = key("label", "name of the label column (csv)")
    inputs_name: str = key("x", "name of the array or dataset with the inputs (npz, hdf5)")
    labels_name: str = key("y", "name of the array or dataset with the labels (npz, hdf5)")
    test_fraction: float = key(0.2, "share of the samples held out for testing where no test_path is given", low=0.0, high=0.9)
    num_classes: int = key(0, "number of classes; 0: one more than the largest label", low=0)
    normalise: str = key(
        "global",
        "subtract the mean and divide by the standard deviation of the training inputs: over all of them, per feature, or not",
        choices=("global", "feature", "none"),
    )
    max_shift: int = key(-1, "shift training images at random by up to this many pixels each way; -1: 1 for digits, else 0", low=-1)


@dataclass(frozen=True)
class OptimizerConfig:
    """How gradients become updates."""

    name: str = key("adamw", "optimizer", choices=("sgd", "adamw"))
    lr: float = key(1e-3, "peak learning rate", low=0.0)
    momentum: float = key(0.9, "momentum of sgd", low=0.0, high=1.0)
    weight_decay: float = key(1e-2, "weight decay (decoupled for adamw, added to the gradient for sgd); biases are exempt", low=0.0)
    beta1: float = key(0.9, "decay of adamw's first moment", low=0.0, high=1.0)
    beta2: float = key(0.999, "decay of adamw's second moment", low=0.0, high=1.0)
    epsilon: float = key(1e-8, "adamw's guard against division by zero", low=0.0)
    schedule: str = key("cosine", "learning rate after the warm-up", choices=("constant", "cosine"))
    warmup_steps: int = key(0, "steps in which the learning rate rises linearly from 0", low=0)
    decay_steps: int = key(
        0,
        "steps from the warm-up to the end of the cosine; 0: until train.epochs end, or train.steps where that is later",
        low=0,
    )
    min_lr: float = key(0.0, "learning rate at the end of the cosine", low=0.0)
    clip_norm: float = key(0.0, "largest global norm of the gradient; 0: no clipping", low=0.0)


@dataclass(frozen=True)
class TrainConfig:
    """How long and in what portions."""

    steps: int = key(0, "train this many steps in all; 0: train.epochs decides", low=0)
    epochs: int = key(30, "train this many passes over the training set, unless train.steps is set", low=1)
    global_batch: int = key(128, "samples a step over all ranks", low=1)
    micro_batches: int = key(
        0, "micro-batches that each data rank cuts its part of a batch into; 0: chosen for the pipeline", low=0
    )
    seed: int = key(0, "seed of weights, sample order and augmentation", low=0)
    evaluate_every_epochs: int = key(1, "epochs between evaluations on the test set; 0: only at the end", low=0)


@dataclass(frozen=True)
class ReduceConfig:
    """How gradients are summed over the data axis."""

    mode: str = key(
        "exact",
        "what travels between nodes: fp32, bf16, or 8-bit blocks with a scale; inside a node sums are exact",
        choices=("exact", "bf16", "int8"),
    )
    bucket_mib: float = key(
        4.0, "size of the pieces whose exchange starts while the backward pass still runs, MiB", low=0.001, high=1024.0
    )
    timeout_s: float = key(300.0, "give up when other ranks stay away this long, seconds", low=1.0)


@dataclass(frozen=True)
class CheckpointConfig:
    """What is kept to resume from."""

    every_steps: int = key(100, "steps between checkpoints; one is also written at the end; 0: only at the end", low=0)
    driver: str = key(
        "auto",
        "how ranks write the file: mpio needs a parallel HDF5; direct writes at its offsets",
        choices=("auto", "mpio", "direct"),
    )


@dataclass(frozen=True)
class Config:
    """The whole configuration, one field a section."""

    run: RunConfig = field(default_factory=RunConfig)
    grid: GridConfig = field(default_factory=GridConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    reduce: ReduceConfig = field(default_factory=ReduceConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
