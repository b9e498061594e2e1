"""Rotary positions: that of Hugging Face, a rotation with its adjoint, C++ against NumPy, Llama 3 scaling, refusals."""

import numpy as np
import pytest

from lepton_mpi import native
from lepton_mpi.ops.rotary import Llama3Scaling, rotary, rotary_backward, rotary_reference, rotary_tables


@pytest.mark.parametrize("shape", [(2, 3, 1, 2), (1, 5, 3, 8), (3, 7, 2, 34), (0, 4, 2, 6), (2, 0, 2, 6)])
def test_native_path_and_adjoint(shape):
    rng = np.random.default_rng(0)
    tables = rotary_tables(shape[1], shape[3])
    x, dy = rng.standard_normal(shape).astype(np.float32), rng.standard_normal(shape).astype(np.float32)
    y = rotary(x, *tables)
    assert (y.shape, y.dtype) == (shape, np.float32)
    np.testing.assert_allclose(y, rotary_reference(x, *tables), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(rotary_backward(dy, *tables), rotary_reference(dy, *tables, -1.0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(rotary_backward(y, *tables), x, atol=1e-6)
    assert np.vdot(y, dy) == pytest.approx(np.vdot(x, rotary_backward(dy, *tables)), abs=1e-4)


def test_scores_depend_on_the_distance_alone():
    tables = rotary_tables(20, 6, dtype=np.float64)
    q, k = np.random.default_rng(1).standard_normal((2, 6))
    q, k = (rotary(np.broadcast_to(v, (1, 20, 1, 6)), *tables)[0, :, 0] for v in (q, k))
    np.testing.assert_allclose(np.diagonal(q @ k.T, offset=3), (q @ k.T)[0, 3], rtol=1e-12)


@pytest.mark.parametrize("scaling", [None, Llama3Scaling(8.0, 1.0, 4.0, 64)])
def test_against_transformers(scaling):
    torch = pytest.importorskip("torch")
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    transformers = pytest.importorskip("transformers")
    parameters = {"rope_type": "default", "rope_theta": 10000.0}
    if scaling is not None:
        parameters = {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position_embeddings,
        }
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1, "max_position_embeddings": 512}
    try:
        config = transformers.LlamaConfig(**sizes, rope_parameters=parameters)
        embedding = llama.LlamaRotaryEmbedding(config)
    except (KeyError, TypeError):
        config = transformers.LlamaConfig(**sizes, rope_theta=10000.0, rope_scaling=parameters)
        embedding = llama.LlamaRotaryEmbedding(config)
    x = np.random.default_rng(2).standard_normal((2, 33, 4, 16)).astype(np.float32)
    theirs = torch.tensor(x).transpose(1, 2)
    cosines, sines = embedding(theirs, torch.arange(33)[None])
    theirs, _ = llama.apply_rotary_pos_emb(theirs, theirs, cosines, sines)
    y = rotary(x, *rotary_tables(33, 16, 10000.0, scaling))
    np.testing.assert_allclose(y, theirs.transpose(1, 2).numpy(), atol=1e-4)


def test_llama3_scaling_stretches_long_waves_only():
    plain, stretched = (rotary_tables(2, 64, 500000.0, scaling, np.float64)[1][1] for scaling in (None, Llama3Scaling()))
    assert plain[0] == stretched[0]
    assert np.arcsin(plain[-1]) == pytest.approx(8 * np.arcsin(stretched[-1]), rel=1e-9)


def test_refusals():
    x, tables = np.zeros((2, 5, 1, 6), np.float32), rotary_tables(5, 6)
    with pytest.raises(ValueError, match="head_features: expected an even number, received 7"):
        rotary_tables(5, 7)
    with pytest.raises(ValueError, match="cosines: expected shape"):
        rotary(x[:, :4], *tables)
    with pytest.raises(ValueError, match="sines: expected shape"):
        rotary(x, tables[0], tables[1][:4])
    with pytest.raises(ValueError, match="x: expected shape"):
        rotary_backward(x[..., :4], *tables)
    with pytest.raises(ValueError, match="x: expected 60 values, received 59"):
        flat = x.reshape(-1)
        native.rotary(flat[:59], tables[0].reshape(-1), tables[1].reshape(-1), 1.0, flat.copy(), 2, 5, 1)
