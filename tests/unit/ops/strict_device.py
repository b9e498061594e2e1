"""A stand-in for CuPy without a GPU: arrays that refuse what device arrays refuse.

`ndarray` wraps a NumPy array. It never turns into one by itself, mixes with scalars and its own kind only, returns 0-d
arrays where NumPy returns scalars, and has CuPy's methods and keyword arguments (checked against CuPy 14). A name that is
missing here and that CuPy documents may be added.
"""

from __future__ import annotations

import math
import types
from dataclasses import dataclass
from typing import Any

import numpy as np

_SCALARS = (bool, int, float, np.generic)


def _to_host(value: Any) -> Any:
    """Return the NumPy array behind a device array, and scalars and plain sequences of such as they are."""
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, list | tuple):
        return type(value)(_to_host(item) for item in value)
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    return value


def _operand(value: Any) -> Any:
    if not isinstance(value, (ndarray, *_SCALARS)):
        raise TypeError(f"Unsupported type {type(value)}")
    return _to_host(value)


def _index(key: Any) -> Any:
    """Return an index for the NumPy array; lists and NumPy arrays would be copied to the device each time."""
    for part in key if isinstance(key, tuple) else (key,):
        if not (part is None or part is Ellipsis or isinstance(part, slice | int | np.integer | ndarray)):
            raise IndexError(f"unsupported index {type(part)}")
    return _to_host(key)


def _to_device(host: Any) -> Any:
    return tuple(_to_device(item) for item in host) if isinstance(host, list | tuple) else ndarray(np.asarray(host))


@dataclass(frozen=True)
class Device:
    """The only device."""

    id: int = 0

    def use(self) -> None:
        """Nothing to choose."""


class ndarray:
    """An array of the device."""

    __module__ = "cupy"  # by which `array_module` knows it

    def __init__(self, host: np.ndarray) -> None:
        self._host = host

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_function__(self, function: Any, *args: Any) -> Any:
        raise TypeError(f"numpy.{function.__name__} called on a device array")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        # What `np.float32(2) * array` comes to.
        if method != "__call__" or kwargs:
            raise TypeError(f"numpy.{ufunc.__name__} called on a device array")
        return _to_device(ufunc(*map(_operand, inputs)))

    def __getitem__(self, key: Any) -> ndarray:
        return _to_device(self._host[_index(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self._host[_index(key)] = _operand(value)

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    def __float__(self) -> float:
        return float(self._host)

    def __int__(self) -> int:
        return int(self._host)

    def __bool__(self) -> bool:
        return bool(self._host)

    __hash__ = None

    def get(self, out: np.ndarray | None = None) -> np.ndarray:
        if out is None:
            return self._host.copy()
        out[...] = self._host
        return out

    def set(self, array: np.ndarray) -> None:
        if not isinstance(array, np.ndarray) or (array.shape, array.dtype) != (self._host.shape, self._host.dtype):
            raise TypeError("expected a NumPy array of the same shape and type")
        self._host[...] = array

    @property
    def device(self) -> Device:
        return Device()

    @property
    def T(self) -> ndarray:
        return self.transpose()


def _binary(name: str) -> Any:
    def operator(self: ndarray, other: Any) -> Any:
        if not isinstance(other, (ndarray, *_SCALARS)):
            raise TypeError(f"Unsupported type {type(other)}")
        result = getattr(self._host, name)(_to_host(other))
        return result if result is NotImplemented else _to_device(result)

    return operator


def _in_place(name: str) -> Any:
    def operator(self: ndarray, other: Any) -> ndarray:
        getattr(self._host, name)(_operand(other))
        return self

    return operator


def _method(name: str, allowed: tuple[str, ...]) -> Any:
    def method(self: ndarray, *args: Any, **kwargs: Any) -> Any:
        if not set(kwargs) <= set(allowed):
            raise TypeError(f"{name}() got an unexpected keyword argument of {sorted(kwargs)}")
        return _to_device(getattr(self._host, name)(*map(_to_host, args), **kwargs))

    return method


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift", "matmul"):
    setattr(ndarray, f"__{_name}__", _binary(f"__{_name}__"))
    setattr(ndarray, f"__r{_name}__", _binary(f"__r{_name}__"))
    setattr(ndarray, f"__i{_name}__", _in_place(f"__i{_name}__"))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(ndarray, f"__{_name}__", _binary(f"__{_name}__"))
for _name in ("neg", "pos", "abs", "invert"):
    setattr(ndarray, f"__{_name}__", _method(f"__{_name}__", ()))
METHODS = {
    **dict.fromkeys(("sum", "mean", "prod"), ("axis", "dtype", "keepdims")),
    **dict.fromkeys(("max", "min", "all", "any"), ("axis", "keepdims")),
    **dict.fromkeys(("argmax", "argmin"), ("axis",)),
    **dict.fromkeys(("reshape", "ravel", "copy"), ("order",)),
    **dict.fromkeys(("transpose", "swapaxes", "view", "item", "tolist", "fill", "take", "repeat"), ()),
    "astype": ("copy", "order"),
}
for _name, _allowed in METHODS.items():
    setattr(ndarray, _name, _method(_name, _allowed))
ATTRIBUTES = ("shape", "dtype", "size", "ndim", "strides", "itemsize", "nbytes", "flags")
for _name in ATTRIBUTES:
    setattr(ndarray, _name, property(lambda self, name=_name: getattr(self._host, name)))


class _Ufunc:
    """An element-wise function with what CuPy's have of NumPy's."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self, *args: Any, out: ndarray | None = None) -> Any:
        if not any(isinstance(arg, ndarray) for arg in args):
            raise TypeError("expected a device array")
        result = self._function(*map(_operand, args), **({} if out is None else {"out": out._host}))
        return _to_device(result) if out is None else out

    def at(self, array: ndarray, indices: Any, values: Any) -> None:
        self._function.at(array._host, _index(indices), _operand(values))


def _function(name: str, allowed: tuple[str, ...]) -> Any:
    def function(*args: Any, **kwargs: Any) -> Any:
        if not set(kwargs) <= set(allowed):
            raise TypeError(f"{name}() got an unexpected keyword argument of {sorted(kwargs)}")
        return _to_device(getattr(np, name)(*map(_to_host, args), **{key: _to_host(value) for key, value in kwargs.items()}))

    return function


def asarray(array: Any, dtype: Any = None) -> ndarray:
    """Copy a NumPy array, a number or a sequence of numbers to the device."""
    return ndarray(array._host.astype(dtype or array.dtype, copy=False) if isinstance(array, ndarray) else np.array(array, dtype))


def asnumpy(array: ndarray) -> np.ndarray:
    """Copy a device array to the host."""
    return array.get()


def copyto(dst: ndarray, src: Any, casting: str = "same_kind", where: ndarray | None = None) -> None:
    np.copyto(dst._host, _operand(src), casting, where=True if where is None else where._host)


def _launch_bias_relu(grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
    y, b, *_ = arguments
    np.maximum(y._host + b._host, np.float32(0), out=y._host)


class RawModule:
    """Kernels that layers launch, in NumPy."""

    def __init__(self, code: str, options: tuple[str, ...]) -> None: ...

    def get_function(self, name: str) -> Any:
        return {"bias_relu": _launch_bias_relu}[name]


UFUNCS = ("abs", "add", "exp", "isnan", "log", "log1p", "maximum", "minimum", "sqrt", "tanh", "multiply", "subtract")
FUNCTIONS = {
    **dict.fromkeys(("arange", "empty", "zeros", "ones", "full", "empty_like", "zeros_like", "ones_like"), ("dtype",)),
    **dict.fromkeys(("concatenate", "stack", "split", "take"), ("axis",)),
    **dict.fromkeys(("where", "broadcast_to", "isneginf", "clip", "nonzero"), ()),
    "searchsorted": ("side",),
    "matmul": ("out",),
    "ascontiguousarray": ("dtype",),
    "pad": ("mode", "constant_values"),
}


def modules() -> dict[str, types.ModuleType]:
    """Return what to put into `sys.modules`."""
    cupy, special = types.ModuleType("cupy"), types.ModuleType("cupyx.scipy.special")
    for made in (ndarray, RawModule, asarray, asnumpy, copyto):
        setattr(cupy, made.__name__, made)
    for name in UFUNCS:
        setattr(cupy, name, _Ufunc(getattr(np, name)))
    for name, allowed in FUNCTIONS.items():
        setattr(cupy, name, _function(name, allowed))
    cupy.float32 = np.float32
    runtime = types.SimpleNamespace(
        getDeviceCount=lambda: 1,
        getDeviceProperties=lambda number: {"name": b"stand-in"},
        CUDARuntimeError=RuntimeError,
    )
    cupy.cuda = types.SimpleNamespace(Device=Device, runtime=runtime)
    special.erfc = _Ufunc(lambda x: np.vectorize(math.erfc, otypes=[x.dtype])(x))
    return {"cupy": cupy, "cupyx.scipy.special": special}
