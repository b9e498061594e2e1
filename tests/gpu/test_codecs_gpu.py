"""Codecs on the GPU: the bytes and values of the CPU kernels."""

import numpy as np
import pytest

from lepton_mpi import native
from lepton_mpi.ops.device_codecs import decode_on_device, encode_on_device

cupy = pytest.importorskip("cupy", reason="needs CuPy")


def has_gpu() -> bool:
    try:
        return bool(cupy.cuda.runtime.getDeviceCount() > 0)
    except cupy.cuda.runtime.CUDARuntimeError:
        return False


pytestmark = pytest.mark.skipif(not has_gpu(), reason="needs a GPU")
CODECS = range(6)
SPECIALS = [np.nan, np.inf, -np.inf, -0.0, 1e-45, 1e-39, 3.4e38, -3.4e38]


def mixed(n: int, seed: int) -> np.ndarray:
    """Return values of many magnitudes, every 97th of them a special one."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(n) * 10.0 ** np.repeat(rng.integers(-30, 30, n // 256 + 1), 256)[:n]).astype(np.float32)
    x[::97] = np.resize(np.array(SPECIALS, np.float32), x[::97].size)
    return x


def bits(values: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(values), np.float32(np.nan), values).view(np.uint32)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("n", [0, 1, 31, 33, 64, 65, 255, 257, 1023, 1025, 5000, 3_000_017])
@pytest.mark.parametrize("offset", [0, 1])
def test_same_bytes_and_values_as_cpu(codec, n, offset):
    for x in (mixed(n, n), np.random.default_rng(n).standard_normal(n).astype(np.float32)):
        expected = np.zeros(native.codec_encoded_nbytes(codec, n), np.uint8)
        native.codec_encode(codec, x, expected)
        memory = cupy.full(expected.size + 8, 0xA5, np.uint8)
        payload = memory[offset : offset + expected.size]
        encode_on_device(codec, cupy.asarray(x), payload)
        np.testing.assert_array_equal(cupy.asnumpy(payload), expected)
        assert (cupy.asnumpy(memory[offset + expected.size :]) == 0xA5).all()
        for add in (False, True):
            start = mixed(n, n + 1)
            out = cupy.asarray(start)
            decode_on_device(codec, payload, out, add)
            native.codec_decode(codec, expected, start, add)
            np.testing.assert_array_equal(bits(cupy.asnumpy(out)), bits(start))


def test_what_does_not_fit_is_refused():
    x, payload = cupy.zeros(10, np.float32), cupy.zeros(14, np.uint8)
    for call, message in [
        (lambda: encode_on_device(9, x, payload), "expected codec 0"),
        (lambda: encode_on_device(2, np.zeros(10, np.float32), payload), "CuPy"),
        (lambda: encode_on_device(2, x, np.zeros(14, np.uint8)), "CuPy"),
        (lambda: encode_on_device(2, x, payload[:-1]), "14 bytes of payload"),
        (lambda: decode_on_device(2, payload, x.reshape(2, 5)), "values of 1 dim"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
