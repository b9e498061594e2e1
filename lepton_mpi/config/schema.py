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
    virtual_stages: int = key(
        0, "runs of layers that each stage holds, with train.schedule = interleaved; 0: two where there are layers enough", low=0
    )
    balance: str = key(
        "estimate",
        "what the stages are cut by: the multiply-adds of the layers, or how long they take, measured at the start",
        choices=("estimate", "measure"),
    )
    sequence: bool = key(
        False,
        "gpt, llama, bert: shards also divide the positions of what lies between divided layers (norms, dropout, residuals)",
    )


@dataclass(frozen=True)
class ModelConfig:
    """The network. Each family reads the keys it has a use for; 0 leaves a size to the family."""

    family: str = key(
        "mlp",
        "model family: linear, mlp, resnet, unet, gpt, llama, bert, recommender, or package.module:Class for one of your own",
    )
    task: str = key(
        "auto",
        "what to train for; auto: the family's first",
        choices=(
            "auto",
            "classification",
            "segmentation",
            "language_model",
            "masked_language_model",
            "regression",
            "binary",
            "ranking",
        ),
    )
    init: str = key("", "file or folder of safetensors weights to start from; empty: fresh weights")
    hidden_sizes: tuple[int, ...] = key((1000, 512, 256, 128), "widths of the hidden layers (mlp, recommender)", low=1)
    channels: str = key(
        "auto", "where images have their channels: first is [C, H, W]; auto: told from the shape", choices=("auto", "first", "last")
    )
    depth: int = key(0, "layers of a resnet: 20, 32, 56 (small images) or 18, 50 (large ones); levels of a unet", low=0)
    width: int = key(0, "features of a transformer; channels of the first level of a unet or resnet", low=0)
    num_layers: int = key(0, "blocks of a transformer", low=0)
    num_heads: int = key(0, "attention heads", low=0)
    num_kv_heads: int = key(0, "heads of keys and values (llama)", low=0)
    intermediate_size: int = key(0, "hidden width of a transformer's feed-forward layers", low=0)
    context: int = key(0, "longest sequence, tokens", low=0)
    vocab_size: int = key(0, "size of the vocabulary; 0: what the data need", low=0)
    pad_token: int = key(-1, "token that fills short sequences up (bert); -1: none", low=-1)
    tied: str = key("auto", "whether the output layer shares the weights of the token embedding", choices=("auto", "yes", "no"))
    norm_epsilon: float = key(0.0, "added to variances under the root; 0: the family's", low=0.0)
    rope_theta: float = key(0.0, "base of rotary positions (llama)", low=0.0)
    rope_scaling: tuple[float, ...] = key(
        (),
        "stretch of rotary positions as of Llama 3.1: factor, low and high frequency factor, original context; empty: none",
        low=0.0,
    )
    dropout: float = key(0.0, "share of activations that dropout clears", low=0.0, high=0.99)
    num_users: int = key(0, "users of a recommender; 0: as the data have", low=0)
    num_items: int = key(0, "items of a recommender; 0: as the data have", low=0)
    embedding_size: int = key(0, "features of an embedding (recommender)", low=0)
    interaction: str = key("mlp", "how a recommender joins user and item", choices=("mlp", "product"))
    options: tuple[str, ...] = key((), 'options of a family of your own, "name=value" each')


@dataclass(frozen=True)
class DataConfig:
    """What to train on."""

    format: str = key(
        "digits",
        "format of the data; digits ships inside the package, images is a folder with one subfolder of pictures a class, "
        "webdataset tar archives, movielens a file of ratings, tokens a file of token numbers, text the bytes of a file or folder, "
        "pystdlib those of Python's standard library, synthetic is made, packed a folder that convert wrote, stream records that "
        "arrive while training runs, in a growing file, a folder or a FIFO",
        choices=(
            "digits",
            "idx",
            "npz",
            "npy",
            "csv",
            "hdf5",
            "packed",
            "parquet",
            "cifar10",
            "cifar100",
            "images",
            "webdataset",
            "movielens",
            "tokens",
            "text",
            "pystdlib",
            "synthetic",
            "stream",
        ),
    )
    path: str = key(
        "",
        "file with the training inputs (and labels, where the format holds both), or folder (text, cifar10, cifar100, images, "
        "webdataset, movielens)",
    )
    labels_path: str = key("", "file with the training labels (idx, npy)")
    test_path: str = key(
        "",
        "file or folder with the test inputs; empty: the test set that the folder of the training set holds (cifar10, cifar100: "
        "its test file; images: subfolders train, and test or val), else test_fraction of the training file is held out",
    )
    test_labels_path: str = key("", "file with the test labels (idx, npy)")
    label_column: str = key(
        "label", "name of the label column (csv, parquet); several names, separated by commas, where labels are values"
    )
    stage_dir: str = key(
        "",
        "folder of a disk of each node, such as /local/scratch, to which one rank of the node copies the data files first; "
        "empty: none",
    )
    stream_idle_s: float = key(60.0, "a stream has ended when no record came for so many seconds (stream)", low=0.1)
    inputs_name: str = key("x", "name of the array or dataset with the inputs (npz, hdf5)")
    labels_name: str = key("y", "name of the array or dataset with the labels (npz, hdf5)")
    test_fraction: float = key(0.2, "share of the samples held out for testing where no test_path is given", low=0.0, high=0.9)
    validation_fraction: float = key(
        0.0,
        "share of the training samples on which training is judged instead of the test set, which is then left to evaluate; "
        "every class in proportion; 0: none",
        low=0.0,
        high=0.9,
    )
    first_n: int = key(
        0,
        "train on as many of the training samples, the first ones of each class, in proportion; 0: on all",
        low=0,
    )
    image_size: tuple[int, ...] = key(
        (),
        "height and width that pictures are scaled to, after what is too long or too wide is cut off at both ends (images, "
        "webdataset); empty: they stay as they are",
        low=1,
        high=65536,
    )
    image_mode: str = key("rgb", "colours of pictures: rgb or grey (images, webdataset)", choices=("rgb", "grey"))
    synthetic: str = key(
        "images",
        "what samples are made (synthetic): images of classes, clusters of points, a linear law, cells to find, texts of "
        "topics, ratings of users, credits",
        choices=("images", "blobs", "regression", "segmentation", "tokens", "ratings", "credit"),
    )
    num_samples: int = key(2000, "number of samples that are made (synthetic)", low=1, high=1e12)
    synthetic_shape: tuple[int, ...] = key(
        (),
        "shape of a made sample: (channels,) height, width of images; features; tokens of a text; for ratings, the numbers of "
        "users and items; empty: the kind's own",
        low=1,
        high=2**31,
    )
    num_classes: int = key(0, "number of classes, or of tokens; 0: one more than the largest label, 256 for text", low=0)
    token_type: str = key("uint16", "type of a token in the file, little-endian (tokens)", choices=("uint16", "uint32", "uint8"))
    mask_rate: float = key(0.15, "share of the tokens that a masked language model is asked for", low=0.01, high=0.9)
    mask_token: int = key(-1, "token that hides another (masked language model); -1: the last of the vocabulary", low=-1)
    test_samples: int = key(
        -1, "test on at most this many samples, the first ones; 0: on all; -1: on all, but on 256 windows of text", low=-1
    )
    normalise: str = key(
        "global",
        "subtract the mean and divide by the standard deviation of the training inputs: over all of them, per feature, or not",
        choices=("global", "feature", "none"),
    )
    max_shift: int = key(-1, "shift training images at random by up to this many pixels each way; -1: 1 for digits, else 0", low=-1)
    augment: tuple[str, ...] = key(
        (),
        'random changes of training samples: "flip", "crop:4" (after adding 4 pixels on each side) or "crop:4:reflect", '
        '"cutout:8", "mixup:0.2"',
    )
    ranking_candidates: int = key(
        99,
        "items that an evaluation of a ranking compares with the chosen one, drawn at random; all where there are no more",
        low=1,
    )


@dataclass(frozen=True)
class OptimizerConfig:
    """How gradients become updates."""

    name: str = key(
        "adamw",
        "optimizer; onebit_adam is the adamw for reduce.mode sign1 and topk",
        choices=("sgd", "adamw", "lamb", "onebit_adam"),
    )
    groups: tuple[str, ...] = key(
        (),
        'parameter groups by name pattern, later ones win: "blocks.0.*: lr=0.1, weight_decay=0" (lr is a factor on optimizer.lr)',
    )
    freeze: tuple[str, ...] = key((), 'patterns of parameters that are not trained, e.g. "embed*"')
    no_decay: tuple[str, ...] = key((), "patterns of parameters without weight decay; norms and biases never have any")
    lr: float = key(1e-3, "peak learning rate", low=0.0)
    momentum: float = key(0.9, "momentum of sgd", low=0.0, high=1.0)
    weight_decay: float = key(
        1e-2, "weight decay (decoupled, but for sgd, where it is added to the gradient); norms and biases are exempt", low=0.0
    )
    beta1: float = key(0.9, "decay of the first moment of adamw, lamb and onebit_adam", low=0.0, high=1.0)
    beta2: float = key(0.999, "decay of their second moment", low=0.0, high=1.0)
    epsilon: float = key(1e-8, "their guard against division by zero", low=0.0)
    schedule: str = key(
        "cosine",
        "learning rate after the warm-up",
        choices=("constant", "cosine", "linear", "polynomial", "step", "inverse_sqrt"),
    )
    warmup_steps: int = key(0, "steps in which the learning rate rises linearly from 0", low=0)
    decay_steps: int = key(
        0,
        "steps from the warm-up to the end of the decay; 0: until train.epochs end, or train.steps where that is later",
        low=0,
    )
    min_lr: float = key(0.0, "learning rate at the end of the decay", low=0.0)
    clip_norm: float = key(0.0, "largest global norm of the gradient; 0: no clipping", low=0.0)
    shard: str = key(
        "node",
        "ranks that divide optimizer state and updates: those of a node, so that each node keeps all of it, or the whole data axis",
        choices=("node", "data"),
    )
    decay_power: float = key(2.0, "exponent of the polynomial schedule", low=0.0)
    drop_at: tuple[float, ...] = key((0.5, 0.75), "shares of the decay at which the step schedule drops", low=0.0, high=1.0)
    drop_factor: float = key(0.1, "factor on the learning rate at each drop of the step schedule", low=0.0, high=1.0)
    freeze_share: float = key(
        0.2, "share of the decay after which onebit_adam freezes the variance and exchanges momenta", low=0.0, high=1.0
    )
    momentum_correction: bool = key(
        False,
        "with sgd, make the momentum on every rank and send that, so that codecs lose less at high learning rates; takes 4 bytes a "
        "value and rank",
    )


@dataclass(frozen=True)
class TrainConfig:
    """How long and in what portions."""

    steps: int = key(0, "train this many steps in all; 0: train.epochs decides", low=0)
    epochs: int = key(30, "train this many passes over the training set, unless train.steps is set", low=1)
    global_batch: int = key(128, "samples a step over all ranks", low=1)
    micro_batches: int = key(
        0,
        "micro-batches that a batch is cut into, whose gradients add up (gradient accumulation); 0: chosen for the pipeline",
        low=0,
    )
    precision: str = key(
        "fp32", "what matrix products round their operands to; weights, sums and updates are fp32", choices=("fp32", "bf16")
    )
    label_smoothing: float = key(0.0, "share of a label's weight that is spread over all classes", low=0.0, high=0.99)
    class_weights: tuple[float, ...] = key((), "weight of each class in the loss; empty: 1 each", low=0.0)
    ema_decay: float = key(
        0.0, "decay of the moving average of the weights, which is then what is evaluated; 0: none", low=0.0, high=0.999999
    )
    metric: str = key("", "metric that early stopping and the best checkpoint look at; empty: the task's first")
    patience: int = key(0, "stop after this many evaluations in a row without a better metric; 0: never", low=0)
    seed: int = key(0, "seed of weights, sample order and augmentation", low=0)
    reproducible: bool = key(
        False,
        "the same bits on every grid: work is done in virtual shards and chunks that do not depend on the ranks, and sums over "
        "them are exact; costs some speed",
    )
    virtual_shards: int = key(
        16, "pieces that a batch is cut into for train.reproducible, whose number is part of the result", low=1, high=4096
    )
    virtual_chunks: int = key(
        4,
        "chunks that dims divided over shards are cut into for train.reproducible; grid.shards is at most as many",
        low=1,
        high=256,
    )
    evaluate_every_epochs: int = key(1, "epochs between evaluations on the test set; 0: only at the end", low=0)
    evaluate_every_steps: int = key(0, "steps between evaluations on the test set, besides those at epochs; 0: none", low=0)
    check_replicas_every: int = key(
        0, "steps between checks that weights and optimizer state are the same wherever several ranks hold them; 0: none", low=0
    )
    schedule: str = key(
        "1f1b",
        "order in which micro-batches pass through the stages of the pipeline",
        choices=("1f1b", "gpipe", "interleaved", "zero_bubble"),
    )
    recompute: bool = key(
        False, "keep only what enters each layer, and run the layer forward again before its backward pass: less memory, more time"
    )
    recompute_stages: tuple[int, ...] = key((), "stages that train.recompute is for, counted from 0; empty: all", low=0)


@dataclass(frozen=True)
class ReduceConfig:
    """How gradients are summed over the data axis."""

    mode: str = key(
        "exact",
        "what travels between nodes: fp32, 16 bits, blocks of 8, 4 or 1 bits with a scale, the largest values (topk), or factors "
        "of low rank (powersgd), from int4 on with error feedback; auto measures which of reduce.allow is fastest; inside a node "
        "sums are exact",
        choices=("exact", "bf16", "fp16", "int8", "int4", "sign1", "topk", "powersgd", "auto"),
    )
    bucket_mib: float = key(
        4.0, "size of the pieces whose exchange starts while the backward pass still runs, MiB", low=0.001, high=1024.0
    )
    timeout_s: float = key(300.0, "give up when other ranks stay away this long, seconds", low=1.0)
    allow: tuple[str, ...] = key(
        ("exact", "bf16"),
        "what reduce.mode auto may choose from",
        choices=("exact", "bf16", "fp16", "int8", "int4", "sign1", "topk"),
    )
    topk_share: float = key(0.05, "share of the values that topk sends", low=1e-6, high=1.0)
    topk_warmup_steps: int = key(
        0, "steps in which the share that topk sends falls in four stages from 25% to reduce.topk_share; 0: none", low=0
    )
    powersgd_rank: int = key(4, "rank of the matrices that stand for gradients with powersgd", low=1, high=1024)
    progress_thread: str = key(
        "auto",
        "whether a thread moves messages between nodes while the backward pass computes; auto: with several nodes, where MPI "
        "admits threads (MPI_THREAD_MULTIPLE)",
        choices=("auto", "on", "off"),
    )
    warmup_share: float = key(
        0.1,
        "share of the decay in which sums travel as reduce.warmup_mode says, before sign1, topk, powersgd or, with adamw and lamb, "
        "int4 begin; onebit_adam: before it freezes the variance, if that is later",
        low=0.0,
        high=1.0,
    )
    warmup_mode: str = key("bf16", "what travels between nodes until then", choices=("exact", "bf16"))
    scale_values: bool = key(
        True,
        "with sign1, and with int4 where the optimizer is adamw or lamb: divide gradients, before they are encoded, by the size "
        "that each value's had in the warm-up; takes 8 bytes a value and rank",
    )


@dataclass(frozen=True)
class CheckpointConfig:
    """What is kept to resume from."""

    every_steps: int = key(100, "steps between checkpoints; one is also written at the end; 0: only at the end", low=0)
    keep_best: bool = key(False, "also keep the model of the best evaluation by train.metric, in the folder best of the run")
    driver: str = key(
        "auto",
        "how ranks write the file: mpio needs a parallel HDF5; direct writes at its offsets",
        choices=("auto", "mpio", "direct"),
    )
    asynchronous: bool = key(
        True,
        "train on while a process beside each rank writes a copy of the state; saves with driver mpio are never asynchronous",
    )
    required: bool = key(False, "end the run when a checkpoint cannot be saved; else it is reported, and tried again later")
    keep_last: int = key(3, "newest checkpoints to keep; 0: all", low=0)
    keep_every: int = key(0, "keep those whose step is a multiple of this for ever; 0: none", low=0)
    hints: tuple[str, ...] = key(
        (), 'hints for MPI-IO about new files, "name=value" each: striping_factor=8, striping_unit=16777216, cb_nodes=4'
    )
    alignment: int = key(
        0, "large tensors begin at multiples of this many bytes, such as a stripe; 0: as the file system states", low=0
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
