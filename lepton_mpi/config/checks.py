"""Combinations of configuration values that cannot work, whatever the data and the number of ranks."""

from __future__ import annotations

from pathlib import Path

from lepton_mpi.config.augmentation import parse_augmentation
from lepton_mpi.config.schema import Config, DataConfig, GridConfig, ModelConfig, OptimizerConfig, RunConfig, TrainConfig
from lepton_mpi.errors import ConfigError

_FORMATS_WITH_LABELS_FILE = ("idx", "npy")
_FORMATS_WITH_NAMED_ARRAYS = ("npz", "hdf5")
_FORMATS_WITH_COLUMNS = ("csv", "parquet")
# Formats that read no file of the user, and what they say of themselves.
FORMATS_WITHOUT_FILES = {
    "digits": "data.format digits ships inside the package",
    "pystdlib": "data.format pystdlib takes the running Python's standard library",
    "synthetic": "data.format synthetic makes its samples",
}
_FORMATS_OF_BYTES = ("text", "pystdlib")


def check_config(config: Config) -> None:
    """Refuse combinations that cannot work.

    Local and pure: no file is looked at. Single values were checked when they were read.

    Raises:
        ConfigError: names the keys, what they are, and what to change.
    """
    _check_run(config.run)
    _check_grid(config.grid, config.train)
    _check_model(config.model)
    _check_data(config.data, _may_lack_labels(config.model))
    _check_stream(config)
    _check_optimizer(config.optimizer, config.train)


def _check_run(run: RunConfig) -> None:
    if run.name in (".", "..") or "/" in run.name:
        raise ConfigError(f"run.name: expected the name of one folder, got {run.name!r}; a path goes into run.dir")
    if run.name and run.dir and Path(run.dir).name != run.name:
        raise ConfigError(f"run.name {run.name!r} and run.dir {run.dir!r} name different folders; give one of them")


def _check_grid(grid: GridConfig, train: TrainConfig) -> None:
    pieces = max(grid.data, 1) * max(train.micro_batches, 1)
    if pieces > train.global_batch:
        raise ConfigError(
            f"train.global_batch: expected at least {pieces} samples, one for each of grid.data x train.micro_batches = "
            f"{max(grid.data, 1)} x {max(train.micro_batches, 1)} pieces, got {train.global_batch}"
        )


def _check_model(model: ModelConfig) -> None:
    if model.family == "mlp" and not model.hidden_sizes:
        raise ConfigError(
            "model.hidden_sizes: expected the width of at least one hidden layer, got an empty list; the family linear has none"
        )
    for option in model.options:
        name, equals, _ = option.partition("=")
        if not name.strip() or not equals:
            raise ConfigError(f'model.options: expected "name=value", got {option!r}')


def _check_stream(config: Config) -> None:
    """Refuse what needs to know all samples before the first one is used."""
    if config.data.format != "stream":
        return
    if not config.train.steps:
        raise ConfigError("train.steps: a stream has no epochs; give the number of steps after which training ends at the latest")
    if config.data.normalise != "none":
        raise ConfigError(
            f"data.normalise: what has not come yet cannot be measured, got {config.data.normalise!r} with data.format stream; "
            'set "none" and let whoever writes the records scale them'
        )
    data = config.data
    for name, given in (
        ("augment", data.augment),
        ("max_shift", data.max_shift > 0),
        ("first_n", data.first_n),
        ("validation_fraction", data.validation_fraction),
        ("stage_dir", data.stage_dir),
    ):
        if given:
            raise ConfigError(f"data.{name}: it does not go with data.format stream; leave it out")


def _may_lack_labels(model: ModelConfig) -> bool:
    """Return whether the task may be one whose samples have no labels."""
    if model.task == "auto":
        return model.family == "recommender" or ":" in model.family
    return model.task in ("ranking", "masked_language_model")


def _check_data(data: DataConfig, may_lack_labels: bool) -> None:
    paths = {name: getattr(data, name) for name in ("path", "labels_path", "test_path", "test_labels_path")}
    if data.format in FORMATS_WITHOUT_FILES:
        for name, path in paths.items():
            if path:
                raise ConfigError(f"data.{name}: {FORMATS_WITHOUT_FILES[data.format]} and reads no file, got {path!r}")
    elif not data.path:
        raise ConfigError(f"data.path: data.format {data.format} reads a file, got an empty path; give the training file")
    if data.format in _FORMATS_WITH_LABELS_FILE and may_lack_labels and not data.labels_path:
        if data.test_labels_path:
            raise ConfigError(f"data.test_labels_path: expected none, as data.labels_path is empty, got {data.test_labels_path!r}")
    elif data.format in _FORMATS_WITH_LABELS_FILE:
        if not data.labels_path:
            raise ConfigError(f"data.labels_path: data.format {data.format} keeps labels in a file of their own, got an empty path")
        if bool(data.test_path) != bool(data.test_labels_path):
            raise ConfigError(
                f"data.test_path and data.test_labels_path: data.format {data.format} needs both or neither, "
                f"got {data.test_path!r} and {data.test_labels_path!r}"
            )
    else:
        for name in ("labels_path", "test_labels_path"):
            if paths[name]:
                raise ConfigError(
                    f"data.{name}: data.format {data.format} holds inputs and labels in one file, got {paths[name]!r}; remove it"
                )
    _check_data_names(data)
    parse_augmentation(data.augment)
    if len(data.image_size) not in (0, 2):
        raise ConfigError(f"data.image_size: expected height and width, got {list(data.image_size)}")
    if data.num_classes == 1:
        raise ConfigError("data.num_classes: expected at least 2, or 0 for one more than the largest label, got 1")
    if data.format in _FORMATS_OF_BYTES and 0 < data.num_classes < 256:
        raise ConfigError(f"data.num_classes: data.format {data.format} has 256 tokens, got {data.num_classes}; leave it at 0")


def _check_data_names(data: DataConfig) -> None:
    if data.format in _FORMATS_WITH_NAMED_ARRAYS:
        if not data.inputs_name or not data.labels_name:
            name = "labels_name" if data.inputs_name else "inputs_name"
            raise ConfigError(f"data.{name}: data.format {data.format} needs the name of an array, got an empty one")
        if data.inputs_name == data.labels_name:
            raise ConfigError(f"data.inputs_name and data.labels_name: expected two arrays, got {data.inputs_name!r} for both")
    if data.format in _FORMATS_WITH_COLUMNS and not data.label_column:
        raise ConfigError(f"data.label_column: data.format {data.format} needs the name of the label column, got an empty one")


def _check_optimizer(optimizer: OptimizerConfig, train: TrainConfig) -> None:
    if optimizer.min_lr > optimizer.lr:
        raise ConfigError(f"optimizer.min_lr: expected at most optimizer.lr = {optimizer.lr!r}, got {optimizer.min_lr!r}")
    if train.steps and optimizer.warmup_steps > train.steps:
        raise ConfigError(f"optimizer.warmup_steps: expected at most train.steps = {train.steps}, got {optimizer.warmup_steps}")
    # A decay of 1 never forgets; Adam's bias correction 1 - beta^t would divide by zero (Kingma and Ba, Adam, algorithm 1).
    adam = optimizer.name != "sgd"
    for name in ("beta1", "beta2") if adam else ("momentum",):
        if getattr(optimizer, name) >= 1.0:
            raise ConfigError(f"optimizer.{name}: expected a number below 1, got {getattr(optimizer, name)!r}")
    if adam and optimizer.epsilon == 0.0:
        raise ConfigError("optimizer.epsilon: expected a number above 0 (a gradient of zero would give 0/0), got 0.0")
    if optimizer.momentum_correction:
        _check_momentum_correction(optimizer, train)
    if optimizer.name == "onebit_adam":
        for name, usual in (("clip_norm", 0.0), ("shard", "node")):
            if getattr(optimizer, name) != usual:
                raise ConfigError(
                    f"optimizer.{name}: expected {usual!r} with onebit_adam, got {getattr(optimizer, name)!r}: its ranks add up "
                    "momenta, of which each node needs all, and never see the norm of the gradient"
                )
        if train.reproducible:
            raise ConfigError("train.reproducible: onebit_adam rounds what it adds up, so it cannot be the same on every grid")


def _check_momentum_correction(optimizer: OptimizerConfig, train: TrainConfig) -> None:
    if optimizer.name != "sgd" or optimizer.momentum == 0.0:
        raise ConfigError(
            "optimizer.momentum_correction: expected optimizer.name sgd and optimizer.momentum above 0, got "
            f"{optimizer.name} and {optimizer.momentum!r}: it sends the momentum of sgd"
        )
    if train.reproducible:
        raise ConfigError(
            "train.reproducible: optimizer.momentum_correction rounds a momentum on every rank, so it cannot be the same on every "
            "grid"
        )
