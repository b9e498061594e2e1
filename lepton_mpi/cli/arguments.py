"""The arguments of the commands that use a trained model, and the configuration they give together with its run.

Nothing here may import NumPy; see `main`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NoReturn, TypeAlias, final

import lepton_mpi
from lepton_mpi.config.checks import FORMATS_WITHOUT_FILES, check_config
from lepton_mpi.config.command_line import build_config, split_overrides
from lepton_mpi.config.keys import Key, Value, list_keys
from lepton_mpi.config.schema import Config, DataConfig, GridConfig
from lepton_mpi.config.toml_file import read_toml
from lepton_mpi.errors import ConfigError

PROGRAM: Final = "python -m lepton_mpi"

_OVERRIDES: Final = (
    "Keys of the run's config.toml can be overridden with --section.key value; `train --help` lists them. The model is "
    "spread over all ranks as --grid.data, --grid.stages and --grid.shards say, or else each rank holds all of it and "
    "takes a share of the samples. Relative paths in config.toml begin where training was started."
)

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


Arguments: TypeAlias = EvaluateArguments | PredictArguments | ExportArguments | FuseArguments | ConvertArguments


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
        options = _make_parser().parse_args(own)
    except _Shown as shown:
        return str(shown)
    if options.command == "train":
        raise ConfigError(f"command line: expected train as the first argument: {PROGRAM} train ...")
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


class _Shown(Exception):
    """A text that was asked for instead of a command."""


class _Show(argparse.Action):
    """Ends parsing with a text: `const`, or the help."""

    def __init__(self, option_strings: Sequence[str], dest: str, const: str = "", help: str = "") -> None:
        super().__init__(option_strings, dest, nargs=0, const=const, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        raise _Shown(self.const or parser.format_help())


class _Parser(argparse.ArgumentParser):
    """A parser that neither prints nor exits, as other ranks would not come along."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(add_help=False, allow_abbrev=False, **kwargs)
        self.add_argument("-h", "--help", action=_Show, help="print this text and stop")

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"command line: {message}; see {self.prog} --help")


def _make_parser() -> _Parser:
    parser = _Parser(prog=PROGRAM, description="Train models on all ranks of an MPI job, and use them.")
    parser.add_argument(
        "--version", action=_Show, const=f"lepton_mpi {lepton_mpi.__version__}\n", help="print the version and stop"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("train", help="train a model; the same as python -m lepton_mpi.train")
    _add_evaluate(commands)
    _add_predict(commands)
    _add_export(commands)
    _add_fuse(commands)
    _add_convert(commands)
    return parser


def _add_evaluate(commands: argparse._SubParsersAction[_Parser]) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="say how well a trained model does on its test set, or another one",
        description="Evaluate the newest checkpoint of a run on the run's own test set, or on the one that --data.test_path names.",
        epilog=_OVERRIDES,
        usage=f"{PROGRAM} evaluate RUN [--data.test_path FILE] [--ensemble RUN2 ...] [--section.key value ...] "
        "[--confusion] [--json]",
    )
    evaluate.add_argument("run", metavar="RUN", help="run folder, such as runs/<name>")
    _add_ensemble(evaluate)
    evaluate.add_argument("--confusion", action="store_true", help="print how often each class (row) was taken for each (column)")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")


def _add_predict(commands: argparse._SubParsersAction[_Parser]) -> None:
    predict = commands.add_parser(
        "predict",
        help="say what a trained model predicts for the samples of a file",
        description="Predict for the samples of a file with the newest checkpoint of a run, and write CSV: index, class, "
        "probability (or value, where there are no classes).",
        epilog=_OVERRIDES,
        usage=f"{PROGRAM} predict RUN INPUT [--format F] [--output FILE] [--probabilities] [--ensemble RUN2 ...] "
        "[--section.key value ...]",
    )
    predict.add_argument("run", metavar="RUN", help="run folder, such as runs/<name>")
    _add_ensemble(predict)
    predict.add_argument(
        "input",
        metavar="INPUT",
        help="file with samples, labelled or not, of the model's input shape or flat; `digits`: those that ship with the package",
    )
    formats = list_keys()["data"]["format"].choices
    predict.add_argument(
        "--format", default="", choices=formats, metavar="F", help=f"{', '.join(formats)}; else told from the file"
    )
    predict.add_argument("--output", type=Path, metavar="FILE", help="write there, whole or not at all, instead of standard output")
    predict.add_argument(
        "--probabilities", action="store_true", help="write the probabilities of all classes instead of the predicted one's"
    )


def _add_ensemble(command: _Parser) -> None:
    command.add_argument(
        "--ensemble",
        action="append",
        default=[],
        type=Path,
        metavar="RUN2",
        help="average the predictions with those of another run of the same task and data shape; may be given several times",
    )


def _add_export(commands: argparse._SubParsersAction[_Parser]) -> None:
    export = commands.add_parser(
        "export",
        help="write the weights of a trained model for other software",
        description="Write the newest checkpoint of a run: as .safetensors with the names and layouts of the transformers "
        "library (gpt, llama, bert; our own for other families), as a folder that it loads (with config.json), or as an .onnx "
        "graph for inference.",
        epilog=_OVERRIDES,
        usage=f"{PROGRAM} export RUN OUTPUT [--section.key value ...]",
    )
    export.add_argument("run", metavar="RUN", help="run folder, such as runs/<name>")
    export.add_argument("output", type=Path, metavar="OUTPUT", help="FILE.safetensors, FILE.onnx, or a folder")


def _add_fuse(commands: argparse._SubParsersAction[_Parser]) -> None:
    fuse = commands.add_parser(
        "fuse",
        help="make one set of weights out of several checkpoints or runs",
        description="Average the weights of checkpoints of one run or of several runs, which must be of one model, and write a "
        "folder that evaluate, predict and export take.",
        epilog=_OVERRIDES,
        usage=f"{PROGRAM} fuse SOURCE [SOURCE ...] --output FOLDER [--method average|ema|greedy] [--decay D] [--last K] "
        "[--metric M] [--section.key value ...]",
    )
    fuse.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="run folder (all its checkpoints; the newest each of several) or a checkpoint",
    )
    fuse.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder to make")
    fuse.add_argument(
        "--method",
        default="average",
        choices=("average", "ema", "greedy"),
        help="average: all alike; ema: older ones fade; greedy: best first, and each further one only if the metric gets better",
    )
    fuse.add_argument("--decay", type=float, default=0.9, metavar="D", help="what ema keeps of the average at each checkpoint")
    fuse.add_argument("--last", type=int, default=0, metavar="K", help="only the K newest checkpoints of a run folder")
    fuse.add_argument("--metric", default="", metavar="M", help="metric of the test set that greedy goes by; else the task's first")


def _add_convert(commands: argparse._SubParsersAction[_Parser]) -> None:
    convert = commands.add_parser(
        "convert",
        help="write a data set in a form that is fast to train on, or check one that was written so",
        description="Write the data that a configuration names as a packed folder (data.format packed: memory-mapped arrays and a "
        "manifest of checksums) or, where OUT ends in .h5, as a chunked HDF5 file. On several ranks each writes a part.",
        epilog="Keys of the configuration can be given as --section.key value: data.* names the data; model.family and model.task "
        "say what labels are wanted, model.context the windows of text in HDF5.",
        usage=f"{PROGRAM} convert [CONFIG.toml] [--section.key value ...] --output OUT [--split all|train|validation|test]\n"
        f"       {PROGRAM} convert --verify PATH",
    )
    convert.add_argument("config", nargs="?", type=Path, metavar="CONFIG.toml", help="configuration file, as train takes it")
    convert.add_argument("--output", type=Path, metavar="OUT", help="folder, or file .h5 or .hdf5, to make")
    convert.add_argument(
        "--split",
        default="all",
        choices=("all", "train", "validation", "test"),
        help="all that data.path holds (the default), or what training would train on or be judged by",
    )
    convert.add_argument("--verify", type=Path, metavar="PATH", help="compare what convert wrote with its checksums")
