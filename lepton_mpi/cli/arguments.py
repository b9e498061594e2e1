"""The arguments of the commands that use a trained model, and the configuration they give together with its run.

Nothing here may import NumPy; see `main`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias, final

from lepton_mpi.cli.bench_arguments import BenchArguments, read_bench_arguments
from lepton_mpi.cli.checkpoint_arguments import COMMANDS as CHECKPOINT_COMMANDS
from lepton_mpi.cli.checkpoint_arguments import CheckpointArguments, read_checkpoint_arguments
from lepton_mpi.cli.parser import PROGRAM, Shown, make_parser
from lepton_mpi.config.checks import FORMATS_WITHOUT_FILES, check_config
from lepton_mpi.config.command_line import build_config, split_overrides
from lepton_mpi.config.keys import Key, Value, list_keys
from lepton_mpi.config.schema import Config, DataConfig, GridConfig
from lepton_mpi.config.toml_file import read_toml
from lepton_mpi.errors import ConfigError

# Formats whose users, movies or classes have the numbers that the training set gives them, so that it must be there.
_FORMATS_WITH_A_NUMBERING: Final = ("images", "movielens")
# Formats that cannot be told from a file or folder.
_FORMATS_WITHOUT_A_MARK: Final = ("text", "tokens", "cifar10", "cifar100", "webdataset")


@final
@dataclass(frozen=True)
class EvaluateArguments:
    """What `evaluate` was asked.

    Attributes:
        run: the run folder.
        config: the run's configuration with the overrides; an empty `data.format` is to be told from `data.test_path`.
        json: whether to print JSON.
        ensemble: further run folders, whose predictions are averaged with those of `run`.
        confusion: whether to print the confusion matrix.
    """

    run: Path
    config: Config
    json: bool
    ensemble: tuple[Path, ...] = ()
    confusion: bool = False


@final
@dataclass(frozen=True)
class PredictArguments:
    """What `predict` was asked.

    Attributes:
        run: the run folder.
        config: the run's configuration with the overrides.
        input: the file to predict on.
        format: its format; empty: to be told from the file.
        output: where predictions go; None: standard output.
        probabilities: whether to write those of all classes.
        ensemble: further run folders, whose predictions are averaged with those of `run`.
    """

    run: Path
    config: Config
    input: str
    format: str
    output: Path | None
    probabilities: bool
    ensemble: tuple[Path, ...] = ()


@final
@dataclass(frozen=True)
class ExportArguments:
    """What `export` was asked.

    Attributes:
        run: the run folder.
        config: the run's configuration with the overrides.
        output: file to write, .safetensors or .onnx, or a folder.
    """

    run: Path
    config: Config
    output: Path


@final
@dataclass(frozen=True)
class FuseArguments:
    """What `fuse` was asked.

    Attributes:
        sources: run folders or folders of single checkpoints, in order.
        config: configuration of the first source's run, with the overrides.
        output: folder of the fused model.
        method: average, ema or greedy.
        decay: of ema.
        last: how many of a run folder's newest checkpoints take part; 0: all.
        metric: what greedy judges by; empty: the task's first.
    """

    sources: tuple[Path, ...]
    config: Config
    output: Path
    method: str
    decay: float
    last: int
    metric: str


@final
@dataclass(frozen=True)
class ConvertArguments:
    """What `convert` was asked.

    Attributes:
        config: the configuration, whose data is to be converted.
        output: folder or HDF5 file to write.
        split: all, train, validation or test.
        verify: check `output` instead of writing it.
    """

    config: Config
    output: Path
    split: str = "all"
    verify: bool = False


Arguments: TypeAlias = (
    EvaluateArguments | PredictArguments | ExportArguments | FuseArguments | ConvertArguments | CheckpointArguments | BenchArguments
)


def read_arguments(argv: Sequence[str]) -> Arguments | str:
    """Read a command line and the `config.toml` of the run that it names.

    Local: one rank calls it, for all.

    Args:
        argv: arguments without the program's name.

    Returns:
        The arguments of the command, or a text to print where help or the version was asked for.

    Raises:
        ConfigError: an argument or override is unknown or impossible, or the run folder is none.
    """
    try:
        own, overrides = split_overrides(argv) if not {"-h", "--help"} & set(argv) else (list(argv), [])
        options = make_parser().parse_args(own)
    except Shown as shown:
        return str(shown)
    if options.command == "train":
        raise ConfigError(f"command line: expected train as the first argument: {PROGRAM} train ...")
    if options.command in CHECKPOINT_COMMANDS:
        if overrides:
            raise ConfigError(
                f"command line: {options.command} takes no configuration, found --{overrides[0][0].section}."
                f"{overrides[0][0].name}: leave it out"
            )
        return read_checkpoint_arguments(options)
    if options.command == "bench":
        if overrides:
            raise ConfigError("command line: bench takes no configuration: leave --section.key out")
        return read_bench_arguments(options)
    if options.command == "convert":
        return _read_convert(options, overrides)
    if options.command == "fuse":
        sources = tuple(map(Path, options.sources))
        run = run_of(sources[0])
        config = _read_config(run, overrides)
        if options.method == "greedy":
            config = replace(config, data=_choose_data(run, config.data, overrides))
        if not 0.0 <= options.decay < 1.0 or options.last < 0:
            raise ConfigError("command line: fuse: expected --decay from 0 up to below 1, and --last of at least 0")
        return FuseArguments(sources, config, options.output, options.method, options.decay, options.last, options.metric)
    run = Path(options.run)
    config = _read_config(run, overrides)
    if options.command == "export":
        return ExportArguments(run, config, options.output)
    ensemble = tuple(options.ensemble)
    if options.command == "evaluate":
        config = replace(config, data=_choose_data(run, config.data, overrides))
        return EvaluateArguments(run, config, options.json, ensemble, options.confusion)
    return PredictArguments(run, config, options.input, options.format, options.output, options.probabilities, ensemble)


def _read_convert(options: argparse.Namespace, overrides: Sequence[tuple[Key, Value]]) -> ConvertArguments:
    if options.verify is not None:
        if options.config is not None or options.output is not None or overrides:
            raise ConfigError("command line: convert --verify: expected nothing but the folder or file to check")
        return ConvertArguments(Config(), options.verify, verify=True)
    if options.output is None:
        raise ConfigError(f"command line: convert: expected --output OUT, or --verify PATH; see {PROGRAM} convert --help")
    values = read_toml(options.config, list_keys()) if options.config is not None else {}
    for key, value in overrides:
        values.setdefault(key.section, {})[key.name] = value
    config = build_config(values)
    check_config(config)
    if options.split == "validation" and not config.data.validation_fraction:
        raise ConfigError("--split validation: data.validation_fraction is 0, so there is no such set: set it, or choose another")
    return ConvertArguments(config, options.output, options.split)


def run_of(source: Path) -> Path:
    """Return the run folder of a source, which is one or the folder of one of its checkpoints. Local."""
    return source.resolve().parent.parent if source.resolve().parent.name == "checkpoints" else source


def read_run_config(run: Path) -> Config:
    """Return the configuration of a run as it is, on any grid. Local.

    Raises:
        ConfigError: there is no such run.
    """
    return _read_config(run, [])


def _read_config(run: Path, overrides: Sequence[tuple[Key, Value]]) -> Config:
    """Return the configuration of a run with overrides; its own grid does not count."""
    if not run.is_dir():
        raise ConfigError(f"run folder {run}: no such folder: give one that training made, such as runs/<name>")
    if not (run / "config.toml").is_file():
        raise ConfigError(f"run folder {run}: it holds no config.toml, so no training ran in it: give one that training made")
    values = read_toml(run / "config.toml", list_keys())
    values["grid"] = {}
    for key, value in overrides:
        values.setdefault(key.section, {})[key.name] = value
    config = build_config(values)
    if max(config.grid.data, config.grid.stages, config.grid.shards) == 0:
        return replace(config, grid=GridConfig(stages=1, shards=1, ranks_per_node=config.grid.ranks_per_node))
    return config


def _choose_data(run: Path, data: DataConfig, overrides: Sequence[tuple[Key, Value]]) -> DataConfig:
    """Return the data to evaluate on: a test file that was named for it, or else what the run was tested on."""
    named = {key.name for key, _ in overrides if key.section == "data"}
    if "test_path" in named:
        if data.format in _FORMATS_WITH_A_NUMBERING:
            return data
        labels_path = data.test_labels_path if "test_labels_path" in named else ""
        # The training files, which may be gone and of another format, have no part in this.
        data = replace(data, path=data.test_path, labels_path=labels_path, test_labels_path=labels_path)
        if "format" in named or data.format in _FORMATS_WITHOUT_A_MARK:
            return data
        return replace(data, format="text" if data.format == "pystdlib" else "")
    if data.format not in FORMATS_WITHOUT_FILES and not data.path:
        raise ConfigError(
            f"run folder {run}: this model was trained on arrays and has no test set of its own: give --data.test_path"
        )
    return data
