"""Find the family that a configuration names: one of ours, or a class of the user's."""

from __future__ import annotations

import importlib
import inspect
import sys

from lepton_mpi.config.schema import ModelConfig
from lepton_mpi.errors import ConfigError
from lepton_mpi.models.family import Family
from lepton_mpi.models.task import Task, choose_task

# A family is imported when it is asked for.
BUILT_IN: dict[str, str] = {
    "linear": "lepton_mpi.models.linear:LinearModel",
    "mlp": "lepton_mpi.models.mlp:Mlp",
    "resnet": "lepton_mpi.models.resnet:ResNet",
    "unet": "lepton_mpi.models.unet:UNet",
    "gpt": "lepton_mpi.models.gpt:Gpt",
    "llama": "lepton_mpi.models.llama:Llama",
    "bert": "lepton_mpi.models.bert:Bert",
    "recommender": "lepton_mpi.models.recommender:Recommender",
}


def find_family(name: str) -> Family:
    """Return a family by name, or by "package.module:Class". Local.

    A module of the user's is imported like any other: from the current directory, PYTHONPATH, or what is installed.

    Raises:
        ConfigError: there is no such module or class, or it is not a family.
    """
    where = BUILT_IN.get(name, name)
    module_name, colon, class_name = where.partition(":")
    if not colon or not module_name or not class_name:
        raise ConfigError(f"model.family: expected one of {', '.join(BUILT_IN)}, or package.module:Class, got {name!r}")
    if "" not in sys.path:  # console scripts have no current directory on the path; `python -m` does
        sys.path.append("")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever a user's module does while it is imported
        raise ConfigError(
            f"model.family: cannot import the module {module_name} of {name!r}: {type(error).__name__}: {error}; it must be "
            "importable from the current directory, PYTHONPATH or the environment"
        ) from error
    found = getattr(module, class_name, None)
    if not (inspect.isclass(found) and issubclass(found, Family)) or inspect.isabstract(found):
        raise ConfigError(
            f"model.family: expected {class_name} in {module.__file__} to be a class derived from lepton_mpi.models.family.Family "
            f"that declares models, found {found!r}"
        )
    family: Family = found()
    return family


def choose_family_task(config: ModelConfig) -> tuple[Family, Task]:
    """Return the family and the task that a configuration names. Local.

    Raises:
        ConfigError: there is no such family, or it cannot do the task.
    """
    family = find_family(config.family)
    return family, choose_task(config.task, config.family, family.tasks)
