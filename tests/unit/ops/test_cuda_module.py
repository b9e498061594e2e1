"""Launches of CUDA kernels, on a stand-in for CuPy: arguments fit the kernels' declarations, wrong arrays are refused."""

import re
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lepton_mpi.native import kernel_source_dirs
from lepton_mpi.ops.adamw_update import AdamwScalars, adamw_scalars, adamw_update
from lepton_mpi.ops.array_module import array_module
from lepton_mpi.ops.bias_relu import bias_relu
from lepton_mpi.ops.cuda_module import MAX_BLOCKS, check_device_arrays, cuda_kernel
from lepton_mpi.ops.sgd_update import sgd_update

CURRENT_DEVICE = SimpleNamespace(id=0)


class DeviceArray(np.ndarray):
    """Looks like a CuPy array to the operations."""

    device = CURRENT_DEVICE


DeviceArray.__module__ = "cupy._core.core"


def device_array(*shape: int, dtype: Any = np.float32) -> Any:
    return np.zeros(shape, dtype).view(DeviceArray)


@pytest.fixture
def launches(monkeypatch) -> list[tuple[str, tuple[int, ...], tuple[int, ...], tuple[Any, ...]]]:
    """Record (kernel, grid, block, arguments) of every launch."""
    recorded: list[Any] = []

    class RawModule:
        def __init__(self, code: str, options: tuple[str, ...]) -> None:
            assert any(option.startswith("-I") for option in options)
            self.code = code

        def get_function(self, name: str) -> Any:
            assert f" {name}(" in self.code
            return lambda grid, block, arguments: recorded.append((name, grid, block, arguments))

    fake = SimpleNamespace(RawModule=RawModule, cuda=SimpleNamespace(Device=lambda: CURRENT_DEVICE))
    monkeypatch.setitem(sys.modules, "cupy", fake)
    cuda_kernel.cache_clear()
    yield recorded
    cuda_kernel.cache_clear()


def declared_types(kernel: str) -> list[str]:
    """Return the parameter types that a .cu file declares, pointers as `float*`."""
    source = (kernel_source_dirs()[0] / f"{kernel}.cu").read_text()
    parameters = re.search(rf"{kernel}\(([^)]*)\)", source)
    assert parameters
    declarations = [re.sub(r"\b(const|__restrict__)\b", "", text).split() for text in parameters[1].split(",")]
    return [" ".join(words[:-1]).strip() for words in declarations]


def received_types(arguments: tuple[Any, ...]) -> list[str]:
    names = {np.float32: "float", np.int64: "long long", np.uint64: "float*"}  # a null pointer is passed as a uint64
    return ["float*" if isinstance(argument, DeviceArray) else names[type(argument)] for argument in arguments]


def check_launch(launch: tuple[str, tuple[int, ...], tuple[int, ...], tuple[Any, ...]], kernel: str, num_elements: int) -> None:
    name, (num_blocks,), (num_threads,), arguments = launch
    assert name == kernel
    assert received_types(arguments) == declared_types(kernel)
    assert num_blocks == min(-(-num_elements // num_threads), MAX_BLOCKS)


def test_arguments_fit_the_declarations(launches):
    values, grads, m, v = (device_array(1000) for _ in range(4))
    assert array_module(values) is sys.modules["cupy"]
    sgd_update(values, grads, None, lr=0.1)
    sgd_update(values, grads, m, lr=0.1, momentum=0.9, weight_decay=0.01, grad_scale=0.5)
    adamw_update(values, grads, m, v, lr=0.1, step=3)
    bias_relu(device_array(30, 100), device_array(100))
    for launch, kernel, num_elements in zip(
        launches, ["sgd_update", "sgd_update", "adamw_update", "bias_relu"], [1000, 1000, 1000, 3000], strict=True
    ):
        check_launch(launch, kernel, num_elements)
    assert launches[0][3][2] == 0
    assert launches[1][3][2] is m
    assert [float(scalar) for scalar in launches[1][3][4:]] == pytest.approx([0.1, 0.9, 0.01, 0.5])
    expected = adamw_scalars(lr=0.1, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.0, grad_scale=1.0, step=3)
    assert launches[2][3][5:] == tuple(expected)
    assert launches[3][3][2:] == (30, 100)


def test_scalars_are_in_the_order_of_the_kernel_and_of_the_struct():
    cuda_dir, include_dir = kernel_source_dirs()
    parameters = re.search(r"long long n,([^)]*)\)", (cuda_dir / "adamw_update.cu").read_text())
    fields = re.search(r"struct AdamwScalars \{(.*?)\};", (include_dir / "lepton" / "update_math.hpp").read_text(), re.DOTALL)
    assert parameters
    assert fields
    assert tuple(re.findall(r"float (\w+)", parameters[1])) == AdamwScalars._fields
    assert tuple(re.findall(r"float (\w+);", fields[1])) == AdamwScalars._fields


def test_large_arrays_are_strided_over(launches):
    size = 256 * MAX_BLOCKS + 1
    sgd_update(device_array(size), device_array(size), None, lr=0.1)
    check_launch(launches[0], "sgd_update", size)
    assert launches[0][1] == (MAX_BLOCKS,)


def test_nothing_is_launched_for_no_elements(launches):
    bias_relu(device_array(0, 5), device_array(5))
    sgd_update(device_array(0), device_array(0), None, lr=0.1)
    assert launches == []


def test_arrays_that_do_not_fit_a_kernel_are_refused(launches):
    good = device_array(4, 3)
    elsewhere = device_array(3)
    elsewhere.device = SimpleNamespace(id=1)
    with pytest.raises(ValueError, match="b: expected a CuPy array"):
        bias_relu(good, np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="b: expected contiguous float32, received float64"):
        bias_relu(good, device_array(3, dtype=np.float64))
    with pytest.raises(ValueError, match="y: expected contiguous float32"):
        bias_relu(good.T, device_array(4))
    with pytest.raises(ValueError, match="b: expected an array on CUDA device 0, received one on device 1"):
        bias_relu(good, elsewhere)
    with pytest.raises(ValueError, match="grads: expected a CuPy array"):
        sgd_update(device_array(3), np.zeros(3, np.float32), None, lr=0.1)
    assert launches == []
    check_device_arrays(y=good)
