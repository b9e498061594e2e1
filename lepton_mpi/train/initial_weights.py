"""Weights from safetensors files instead of random ones."""

from __future__ import annotations

import logging
from pathlib import Path

from lepton_mpi.comm.agreement import do_on_all
from lepton_mpi.comm.contract import collective
from lepton_mpi.config.schema import ModelConfig
from lepton_mpi.interop.choose_map import make_name_map
from lepton_mpi.interop.weights_source import open_weights
from lepton_mpi.runtime.ranges import split_range
from lepton_mpi.train.network import Network

_log = logging.getLogger(__name__)


@collective("grid.world")
def load_weights(network: Network, config: ModelConfig) -> None:
    """Replace the weights by those that `model.init` names; each rank reads the rows that it is to fill.

    Collective over grid.world. What the file need not hold, such as a classifier for BERT, keeps its initial values.

    Args:
        network: the network.
        config: section of the model.

    Raises:
        CheckpointError: the file cannot be read, or does not fit: names the first tensor that differs; on all ranks alike.
    """
    do_on_all(network.grid.world, lambda: _read_own_rows(network, config))  # also: all rows of this node are in place
    network.memory.upload()
    _log.info("weights from %s", config.init)


def _read_own_rows(network: Network, config: ModelConfig) -> None:
    memory, ranks = network.memory, network.grid.data_in_node
    with open_weights(Path(config.init)) as source:
        names = make_name_map(network.model, config)
        absent = names.require_fit(source)
        if absent and network.grid.rank == 0:
            _log.warning("%s does not hold %s: they start as in a fresh model", config.init, ", ".join(absent))
        for index, block in enumerate(memory.layout.blocks):
            if block.name in absent:
                continue
            rows = split_range(block.shape[0], ranks.Get_size(), ranks.Get_rank())
            memory.layout.view(index, memory.values)[slice(*rows)] = names.read_block(source, block, rows)
