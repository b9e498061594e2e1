"""Find the name map of a model: that of transformers for the families it has too, our own names for all others."""

from __future__ import annotations

from lepton_mpi.config.schema import ModelConfig
from lepton_mpi.interop.bert import bert_map
from lepton_mpi.interop.gpt2 import gpt2_map
from lepton_mpi.interop.llama import llama_map
from lepton_mpi.interop.name_map import Entry, NameMap
from lepton_mpi.models.family import ModelSpec

_MAPS = {"gpt": gpt2_map, "llama": llama_map, "bert": bert_map}


def make_name_map(model: ModelSpec, config: ModelConfig) -> NameMap:
    """Return the names of a model's parameters in safetensors files. Local, pure.

    Files of other families may lack running statistics, and may hold the counters that PyTorch keeps beside them.

    Args:
        model: the model.
        config: the section [model] that it was declared from.
    """
    if model.family in _MAPS:
        return _MAPS[model.family](model, config)
    entries = tuple(Entry(spec, spec.name, optional=spec.role == "statistic") for spec in model.parameters)
    return NameMap(entries, ignored=(r".+\.num_batches_tracked",))
