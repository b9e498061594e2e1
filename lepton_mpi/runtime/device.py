"""Choose where arrays live."""

from __future__ import annotations

import importlib
from types import ModuleType

import numpy as np

from lepton_mpi.errors import ConfigError


def select_device(kind: str, rank_in_node: int) -> ModuleType:
    """Return the array module of a device, numpy or cupy, and make the device current. Local.

    Ranks of a node take its GPUs in turn; several may share one.

    Args:
        kind: "cpu" or "gpu", as `run.device` says.
        rank_in_node: number of this rank among those of its node.

    Raises:
        ConfigError: there is no CuPy or no GPU; may happen on some ranks only.
    """
    if kind == "cpu":
        return np
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        raise ConfigError(
            f"run.device: expected CuPy for gpu, but it cannot be imported ({error}): install cupy-cuda12x or cupy-cuda13x to "
            "match the driver, or take run.device = cpu"
        ) from error
    try:
        num_devices = int(cupy.cuda.runtime.getDeviceCount())
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise ConfigError(f"run.device: CuPy finds no GPU on this node ({error}): take run.device = cpu") from error
    cupy.cuda.Device(rank_in_node % num_devices).use()
    return cupy


def describe_device(xp: ModuleType) -> str:
    """Return the name of the current device. Local."""
    if xp is np:
        return "CPU"
    device = xp.cuda.Device()
    name = xp.cuda.runtime.getDeviceProperties(device.id)["name"].decode()
    return f"GPU {device.id} ({name})"
