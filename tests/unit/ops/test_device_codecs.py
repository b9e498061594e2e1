"""What the codecs hand to their CUDA kernels, and what they refuse; tests/native runs the kernels, tests/gpu both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lepton_mpi import native
from lepton_mpi.ops import device_codecs
from lepton_mpi.ops.device_codecs import decode_on_device, encode_on_device


def host_launch(name: str, num_threads: int, *arguments: Any) -> None:
    """Do what the kernel of that name does with such arguments, and require their types: CuPy checks none."""
    if name == "codec_encode":
        codec, x, n, out = arguments
        assert (type(codec), type(n)) == (np.int32, np.int64)
        block = native.codec_block_values(int(codec))
        assert num_threads == (n if block == 1 else 32 * -(-n // block))
        native.codec_encode(int(codec), x._host[:n], out._host)
    else:
        codec, payload, n, add, out = arguments
        assert (name, type(codec), type(n), type(add)) == ("codec_decode", np.int32, np.int64, np.int32)
        assert num_threads == n
        native.codec_decode(int(codec), payload._host, out._host[:n], bool(add))


@pytest.mark.parametrize("codec", range(6))
@pytest.mark.parametrize("n", [0, 1, 1500])
def test_same_as_on_the_host(codec: int, n: int, device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_codecs, "launch", host_launch)
    x, start = (np.random.default_rng(seed).standard_normal(n).astype(np.float32) for seed in (1, 2))
    expected = np.zeros(native.codec_encoded_nbytes(codec, n), np.uint8)
    native.codec_encode(codec, x, expected)
    payload = device.zeros(expected.size, dtype=np.uint8)
    encode_on_device(codec, device.asarray(x), payload)
    np.testing.assert_array_equal(device.asnumpy(payload), expected)
    for add in (False, True):
        out, values = device.asarray(start), start.copy()
        decode_on_device(codec, payload, out, add)
        native.codec_decode(codec, expected, values, add)
        np.testing.assert_array_equal(device.asnumpy(out), values)


def test_what_does_not_fit_is_refused(device: Any) -> None:
    x, payload = device.zeros(10, dtype=np.float32), device.zeros(14, dtype=np.uint8)
    for call, message in [
        (lambda: encode_on_device(9, x, payload), "expected codec 0"),
        (lambda: encode_on_device(2, np.zeros(10, np.float32), payload), "CuPy"),
        (lambda: encode_on_device(2, x, np.zeros(14, np.uint8)), "uint8 CuPy array"),
        (lambda: encode_on_device(2, x, payload.view(np.int8)), "uint8 CuPy array"),
        (lambda: encode_on_device(2, x, payload[:-1]), "14 bytes of payload"),
        (lambda: decode_on_device(2, payload, x.reshape(2, 5)), "values of 1 dim"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
