"""CUDA kernels: sources in kernels/cuda, compiled by NVRTC through CuPy at first use, and how they are launched.

CuPy checks neither number nor types of a raw kernel's arguments; the operations therefore check
their arrays with `check_device_arrays` and pass scalars as NumPy scalars of the kernel's type.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import numpy as np

from lepton_mpi.native import kernel_source_dirs
from lepton_mpi.ops.array_module import Array, array_module

THREADS_PER_BLOCK = 256
# Enough blocks to fill the largest GPU several times over; kernels stride over the rest.
MAX_BLOCKS = 8192
# No FMA contraction: results equal those of the CPU kernels bit for bit.
COMPILE_OPTIONS = ("-std=c++17", "--fmad=false")


@functools.cache
def cuda_kernel(name: str) -> Any:
    """Return the compiled kernel `name` of kernels/cuda/name.cu. Local.

    Raises:
        NativeError: the installation lacks the CUDA sources.
    """
    cuda_dir, include_dir = kernel_source_dirs()
    cupy = importlib.import_module("cupy")
    source = (cuda_dir / f"{name}.cu").read_text()
    module = cupy.RawModule(code=source, options=(*COMPILE_OPTIONS, f"-I{include_dir}"))
    return module.get_function(name)


def launch(name: str, num_elements: int, *arguments: Array | np.generic) -> None:
    """Launch a kernel that strides over its elements, on the current stream; nothing for 0 elements. Local."""
    if num_elements == 0:
        return
    num_blocks = min(-(-num_elements // THREADS_PER_BLOCK), MAX_BLOCKS)
    cuda_kernel(name)((num_blocks,), (THREADS_PER_BLOCK,), arguments)


def check_device_arrays(**arrays: Array) -> None:
    """Require contiguous float32 CuPy arrays on the current device. Local.

    Raises:
        ValueError: an array is another library's, has another dtype or layout, or lives on another device.
    """
    for name, array in arrays.items():
        if array_module(array) is np:
            raise ValueError(f"{name}: expected a CuPy array like the others, received {type(array).__name__}")
        if array.dtype != np.float32 or not array.flags.c_contiguous:
            raise ValueError(
                f"{name}: expected contiguous float32, received {array.dtype} of shape {array.shape} with strides {array.strides}"
            )
        current = array_module(array).cuda.Device()
        device: Any = array.device
        if device != current:
            raise ValueError(f"{name}: expected an array on CUDA device {current.id}, received one on device {device.id}")
