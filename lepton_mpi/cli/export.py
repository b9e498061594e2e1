"""`python -m lepton_mpi export`: a trained model in the formats of other software."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Literal

from lepton_mpi.cli.arguments import ExportArguments
from lepton_mpi.cli.trained_model import TrainedModel, restore_model
from lepton_mpi.comm.agreement import do_on_root, raise_together
from lepton_mpi.comm.contract import collective
from lepton_mpi.config.schema import ModelConfig
from lepton_mpi.errors import ConfigError
from lepton_mpi.interop import name_map, onnx_file
from lepton_mpi.interop.choose_map import make_name_map
from lepton_mpi.interop.onnx_export import export_onnx
from lepton_mpi.runtime.logs import start_logging
from lepton_mpi.runtime.mpi import MPI

# What an output is told to be by its name.
Kind = Literal["onnx", "safetensors", "folder"]


@collective("comm")
def run_export(comm: MPI.Intracomm, arguments: ExportArguments) -> None:
    """Export as asked; rank 0 writes, and says on standard output what.

    Collective over comm.

    Raises:
        LeptonError: the output is of no known kind or cannot be written, a package is missing, or the model cannot be
            read; on all ranks alike.
    """
    with start_logging(comm.Get_rank(), comm.Get_size(), None, "WARNING"):
        kind = do_on_root(comm, lambda: choose_kind(arguments.output))
        model = restore_model(comm, arguments.config, arguments.run)
        # Where only rank 0 fails, all have gathered, so that they meet here.
        error: Exception | None = None
        try:
            _write(model, arguments.config.model, kind, arguments.output)
        except Exception as found:
            error = found
        raise_together(comm, error)
        model.network.grid.free()
    if comm.Get_rank() == 0:
        sys.stdout.write(_describe(model, arguments.config.model, kind, arguments.output))


def choose_kind(output: Path) -> Kind:
    """Return what to write under a name. Local; one rank calls it, for all.

    Raises:
        ConfigError: the name tells nothing or is taken by something else, or the package for it is missing.
    """
    if output.suffix in (name_map.SUFFIX, onnx_file.SUFFIX):
        if output.is_dir():
            raise ConfigError(f"{output}: there is a folder of this name: give another one")
        if output.suffix == name_map.SUFFIX:
            return "safetensors"
        onnx_file.require_onnx()
        return "onnx"
    if output.is_dir():
        if any(output.iterdir()):
            raise ConfigError(f"{output}: this folder is not empty: give one that is, or a name that is free")
        return "folder"
    if output.exists():
        raise ConfigError(f"{output}: there is a file of this name: give FILE.safetensors, FILE.onnx, or a folder")
    if output.suffix:
        raise ConfigError(
            f"{output}: cannot export to {output.suffix}: give FILE.safetensors, FILE.onnx, or a folder; one with a dot in its "
            "name must be there, empty"
        )
    return "folder"


@collective("grid.world")
def _write(model: TrainedModel, config: ModelConfig, kind: Kind, output: Path) -> None:
    """Write the weights as asked. Collective over grid.world."""
    network = model.network
    if kind == "onnx":
        export_onnx(network.model, model.normalisation, network.weights.gather, output, model.state.step)
    else:
        make_name_map(network.model, config).export(network.weights.gather, output)


def _describe(model: TrainedModel, config: ModelConfig, kind: Kind, output: Path) -> str:
    """Return one line about what was written."""
    spec = model.network.model
    shapes, names = [parameter.shape for parameter in spec.parameters], "an ONNX graph that takes raw inputs"
    if kind != "onnx":
        found = make_name_map(spec, config)
        shapes, names = list(found.shapes.values()), "names of transformers" if found.model_type else "our own names"
    mebibytes = 4 * sum(map(math.prod, shapes)) / 2**20
    return f"wrote {output}: {spec.family} of {model.checkpoint.name}, {names}, {len(shapes)} tensors, {mebibytes:.2f} MiB\n"
