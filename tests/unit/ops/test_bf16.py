"""Rounding to bfloat16 bit for bit, and products of rounded operands with and without oneDNN."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lepton_mpi import native
from lepton_mpi.errors import NativeError
from lepton_mpi.ops import product as product_module
from lepton_mpi.ops.bf16 import round_to_bf16, round_to_bf16_reference
from lepton_mpi.ops.product import product

needs_units = pytest.mark.skipif(native.bf16_product() is None, reason="built without oneDNN, or a CPU without bfloat16 units")


def values(*shape: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_native_rounding_equals_the_reference_on_bits_of_all_kinds() -> None:
    bits = np.random.default_rng(4).integers(0, 2**32, 200_001, dtype=np.uint32)
    edges = np.array([0, 0x8000, 0x18000, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0xFFFFFFFF, 0x80000000, 1], np.uint32)
    x = np.concatenate([bits, edges]).view(np.float32)
    np.testing.assert_array_equal(round_to_bf16(x).view(np.uint32), round_to_bf16_reference(x).view(np.uint32))


def test_ties_go_to_even() -> None:
    x = np.array([0x3F808000, 0x3F818000, 0x3F808001], np.uint32).view(np.float32)
    np.testing.assert_array_equal(round_to_bf16(x).view(np.uint32), [0x3F800000, 0x3F820000, 0x3F810000])


@pytest.mark.parametrize(
    "x",
    [values(3, 5), values(3, 5).T, values(6, 7)[::2, 1:5], values(2, 3, 4).transpose(1, 0, 2), values(0, 4), values(1)[0:1, None]],
    ids=["rows", "columns", "part", "permuted", "empty", "one"],
)
def test_any_layout(x: np.ndarray) -> None:
    kept = x.copy()
    y = round_to_bf16(x)
    np.testing.assert_array_equal(y, round_to_bf16_reference(x))
    np.testing.assert_array_equal(x, kept)
    assert not np.shares_memory(x, y)


def test_only_float32() -> None:
    with pytest.raises(ValueError, match="expected float32"):
        round_to_bf16(np.zeros(3))
    with pytest.raises(ValueError, match="expected float32"):
        product(np.zeros((2, 2)), np.zeros((2, 2)), "bf16")


def test_the_extension_checks_sizes() -> None:
    with pytest.raises(ValueError, match="expected 3 values"):
        native.round_to_bf16(values(3), values(2))


PAIRS = [
    (values(3, 5), values(5, 7)),
    (values(17, 33), values(12, 33, seed=5).T),
    (values(33, 17).T, values(33, 12, seed=5)),
    (values(4, 7, 9), values(9, 5)),
    (values(7, 9), values(4, 9, 5, seed=5)),
    (values(2, 3, 5, 8), values(2, 1, 8, 6, seed=5)),
    (values(2, 5, 3, 8).transpose(0, 2, 1, 3), values(2, 6, 3, 8, seed=5).transpose(0, 2, 3, 1)),
    (values(9, 20)[:, ::2], values(20, 8)[::2]),
    (values(1, 9), values(9, 1)),
    (values(0, 9), values(9, 3)),
    (values(3, 0), values(0, 2)),
    (np.broadcast_to(values(1, 4), (3, 4)), values(4, 4)[::-1]),
]


@pytest.mark.parametrize("on_units", [False, pytest.param(True, marks=needs_units)])
@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_product_of_rounded_operands(a: np.ndarray, b: np.ndarray, on_units: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if on_units:
        monkeypatch.setattr(product_module, "_FEWEST_PRODUCTS", 1)
    else:
        monkeypatch.setattr(native, "bf16_product", lambda: None)
    expected = np.matmul(round_to_bf16_reference(a).astype(np.float64), round_to_bf16_reference(b).astype(np.float64))
    y = product(a, b, "bf16")
    assert (y.dtype, y.shape) == (np.float32, expected.shape)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@needs_units
def test_large_products_use_the_units(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = native.bf16_product()

    def counted(a: np.ndarray, b: np.ndarray, y: np.ndarray) -> None:
        calls.append(a.shape)
        real(a, b, y)

    monkeypatch.setattr(native, "bf16_product", lambda: counted)
    a, b = values(128, 96), values(96, 64)
    y = product(a, b, "bf16")
    assert calls == [(1, 128, 96)]
    np.testing.assert_allclose(y, np.matmul(round_to_bf16(a), round_to_bf16(b)), rtol=1e-4, atol=1e-4)
    product(a, b)
    product(a[:2], b, "bf16")
    assert len(calls) == 1


@needs_units
@pytest.mark.parametrize(
    ("a", "b", "y", "message"),
    [
        (values(1, 2, 3), values(1, 4, 5), values(1, 2, 5), "multiplied"),
        (values(2, 2, 3), values(3, 3, 5), values(2, 2, 5), "multiplied"),
        (values(1, 2, 3), values(1, 3, 5), values(1, 2, 6), "shape of the product"),
        (values(2, 3), values(1, 3, 5), values(1, 2, 5), "expected .batch"),
        (values(0, 2, 3), values(1, 3, 5), values(0, 2, 5), "none of them 0"),
        (values(1, 2, 6)[..., ::-1], values(1, 6, 5), values(1, 2, 5), "none negative"),
        (values(1, 4, 6)[:, ::2, ::2], values(1, 3, 5), values(1, 2, 5), "contiguous"),
    ],
)
def test_the_extension_refuses_what_does_not_fit(a: np.ndarray, b: np.ndarray, y: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        native.bf16_product()(a, b, y)


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="mismatch"):
        product(values(512, 512), values(511, 512), "bf16")


def test_no_onednn_means_no_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "PACKAGE_DIR", tmp_path)
    assert native.bf16_product.__wrapped__() is None


def test_onednn_that_does_not_load_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError("libdnnl.so.3: cannot open shared object file")

    (tmp_path / "_onednn.so").touch()
    monkeypatch.setattr(native, "PACKAGE_DIR", tmp_path)
    monkeypatch.setattr(native.importlib, "import_module", fail)
    with pytest.raises(NativeError, match=r"libdnnl.*pip install onednn-cpu-gomp"):
        native.bf16_product.__wrapped__()
