"""The table of modes: names, numbers of the wire format, who needs feedback; the passes that a probe times."""

import numpy as np
import pytest

from lepton_mpi import native
from lepton_mpi.compress.codec import CODECS
from lepton_mpi.compress.modes import MODES, codec_number, needs_feedback
from lepton_mpi.compress.passes import codec_passes
from lepton_mpi.errors import CodecError


def test_modes_are_the_codecs_and_two_more():
    numbers = {name: mode.number for name, mode in MODES.items()}
    assert numbers == {codec.name: codec.number for codec in CODECS} | {"topk": 6, "powersgd": None}
    assert {name for name in MODES if needs_feedback((name,))} == {"int4", "sign1", "topk", "powersgd"}
    assert needs_feedback(("exact", "int4"))
    assert not needs_feedback(("exact", "int8"))


def test_what_has_no_number():
    assert codec_number("topk") == 6
    with pytest.raises(CodecError, match=r"expected one of exact, bf16.*, received 'int7'"):
        codec_number("int7")
    with pytest.raises(CodecError, match="powersgd is no codec"):
        codec_number("powersgd")


def test_functions_of_fixed_length_refuse_topk():
    with pytest.raises(ValueError, match=r"codec 6 \(topk\) has payloads of no fixed length"):
        native.codec_encoded_nbytes(6, 10)
    with pytest.raises(ValueError, match=r"5 \(sign1\) or 6 \(topk\), received 7"):
        native.codec_encoded_nbytes(7, 10)
    assert native.codec_block_values(6) == 1


@pytest.mark.parametrize("name", [name for name, mode in MODES.items() if mode.number is not None])
def test_passes(name):
    values = np.random.default_rng(1).standard_normal(5000).astype(np.float32)
    before = values.copy()
    passes = codec_passes(name, values, 0.02)
    passes.encode()
    np.testing.assert_array_equal(values, before)
    passes.decode()
    decoded = values.copy()
    passes.decode_add()
    np.testing.assert_array_equal(values, decoded + decoded)
    assert (decoded != 0).mean() == pytest.approx(0.02, rel=0.2) if name == "topk" else (decoded != 0).any()
    low, high = {"topk": (40, 60), "sign1": (30, 32), "int4": (7, 8), "int8": (3.9, 4)}.get(name, (1, 2))
    assert low <= passes.ratio <= high
