"""The command line of the commands that are not `train`, as argparse has it: options and their help.

Nothing here may import NumPy; see `main`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import lepton_mpi
from lepton_mpi.cli.bench_arguments import add_bench_command
from lepton_mpi.cli.checkpoint_arguments import add_checkpoint_commands
from lepton_mpi.config.keys import list_keys
from lepton_mpi.errors import ConfigError

PROGRAM: Final = "python -m lepton_mpi"

_OVERRIDES: Final = (
    "Keys of the run's config.toml can be overridden with --section.key value; `train --help` lists them. The model is "
    "spread over all ranks as --grid.data, --grid.stages and --grid.shards say, or else each rank holds all of it and "
    "takes a share of the samples. Relative paths in config.toml begin where training was started."
)


class Shown(Exception):
    """A text that was asked for instead of a command."""


class _Show(argparse.Action):
    """Ends parsing with a text: `const`, or the help."""

    def __init__(self, option_strings: Sequence[str], dest: str, const: str = "", help: str = "") -> None:
        super().__init__(option_strings, dest, nargs=0, const=const, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        raise Shown(self.const or parser.format_help())


class _Parser(argparse.ArgumentParser):
    """A parser that neither prints nor exits, as other ranks would not come along."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(add_help=False, allow_abbrev=False, **kwargs)
        self.add_argument("-h", "--help", action=_Show, help="print this text and stop")

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"command line: {message}; see {self.prog} --help")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; it raises instead of printing and ending the process. Local.

    Its `parse_args` raises `Shown` where a text was asked for, ConfigError for what it does not know.
    """
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
    add_bench_command(commands)
    add_checkpoint_commands(commands)
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
