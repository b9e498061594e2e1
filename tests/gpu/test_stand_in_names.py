"""The stand-in for CuPy offers nothing that CuPy lacks. Needs CuPy, but no GPU."""

from __future__ import annotations

import importlib
import inspect

import pytest
import strict_device

cupy = pytest.importorskip("cupy", reason="CuPy is not installed")


@pytest.mark.parametrize("name", strict_device.UFUNCS)
def test_element_wise_functions(name: str) -> None:
    assert isinstance(getattr(cupy, name), cupy.ufunc)


@pytest.mark.parametrize("name", strict_device.FUNCTIONS)
def test_functions_and_their_keywords(name: str) -> None:
    function, keywords = getattr(cupy, name), strict_device.FUNCTIONS[name]
    if keywords:  # those without are compiled, or take none here
        parameters = inspect.signature(function).parameters.values()
        known = {parameter.name for parameter in parameters}
        assert set(keywords) <= known or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


@pytest.mark.parametrize("name", [*strict_device.METHODS, *strict_device.ATTRIBUTES, "get", "set", "device", "T"])
def test_methods_and_attributes(name: str) -> None:
    assert hasattr(cupy.ndarray, name)


def test_other_names() -> None:
    made = strict_device.modules()
    for module, names in made.items():
        for name in vars(names):
            assert name.startswith("__") or hasattr(importlib.import_module(module), name)
