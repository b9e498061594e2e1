"""The update of the slices that a rank owns, once the sum of the gradients is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.grid import ProcessGrid
from lepton_mpi.nn.parameter import ParameterSpec
from lepton_mpi.optim.groups import ParameterGroup
from lepton_mpi.optim.optimizer import Optimizer
from lepton_mpi.parallel.exchange import OwnedSlice
from lepton_mpi.parallel.node_parameters import NodeParameters
from lepton_mpi.train.averaging import EMA_SLOT
from lepton_mpi.train.norms import norms_of_parts


class SliceUpdater:
    """Bring the slices that this rank owns from one step to the next."""

    def __init__(
        self,
        grid: ProcessGrid,
        memory: NodeParameters,
        owned_slices: Sequence[OwnedSlice],
        optimizer: Optimizer,
        groups: Mapping[str, ParameterGroup],
        ema_decay: float,
        exact: bool = False,
    ) -> None:
        """Note what there is to update. Local.

        Args:
            grid: the process grid.
            memory: parameters of this rank; its own gradient buffer has the sums on the owned slices.
            owned_slices: of the gradient exchange.
            optimizer: updates slices.
            groups: how each parameter is updated, by name, in the same order on all ranks.
            ema_decay: decay of the moving average of the weights; 0: none is kept.
            exact: whether norms must have the same bits on every grid.
        """
        self._grid, self._memory, self._slices = grid, memory, owned_slices
        self._optimizer, self._groups, self._ema_decay = optimizer, groups, ema_decay
        self._exact = exact
        self._grad = memory.grads[grid.data_in_node.Get_rank()]

    def outgoing(self, step: int) -> Callable[[int, int], None] | None:
        """Return what turns this rank's gradient of a range of the buffer into what it adds to the sum; None: nothing does. Local.

        Gradients of parameters that are not trained stay as they are.

        Args:
            step: number of the coming update, from 1.
        """
        if not self._optimizer.replaces_outgoing(step):
            return None

        layout, held = self._memory.layout, self._memory.rank_slots or self._memory.slots
        blocks = [(first, block) for first, block in zip(layout.offsets, layout.blocks, strict=True) if self._trains(block.spec)]

        def replace(start: int, stop: int) -> None:
            for first, block in blocks:
                low, high = max(start, first), min(stop, first + block.size)
                if low < high:
                    slots = {name: slot[low:high] for name, slot in held.items()}
                    self._optimizer.outgoing(self._grad[low:high], slots, self._grid.shape.data)

        return replace

    @collective("grid.world")
    def update(self, lr: float, grad_scale: float, step: int) -> None:
        """Update values, optimizer state, running statistics and moving average.

        Collective over grid.world. A message is sent only where the optimizer needs norms of whole parameters.

        Args:
            lr: learning rate, before the factors of groups.
            grad_scale: factor on the gradients.
            step: number of this update, from 1.
        """
        factors = self._layer_factors(grad_scale, step) if self._optimizer.needs_norms else {}
        for s in self._slices:
            values, grad, group = self._memory.values[s.start : s.stop], self._grad[s.start : s.stop], self._groups[s.spec.name]
            if group.trained and s.spec.role == "statistic":
                values += grad
            elif group.trained:
                own_lr = lr * group.lr_scale * factors.get(s.spec.name, 1.0)
                self._optimizer.update(values, grad, self._slots(s), own_lr, grad_scale, group.weight_decay, step)
            if self._ema_decay:
                average = self._memory.slots[EMA_SLOT][self._memory.slot_range(s.start, s.stop)]
                average += np.float32(1.0 - self._ema_decay) * (values - average)

    @collective("grid.world")
    def _layer_factors(self, grad_scale: float, step: int) -> dict[str, float]:
        """Prepare all slices, and return the factor on the learning rate of each parameter, by name.

        Collective over grid.world. Copies that other shards, stages or nodes hold too count once.
        """
        parts, index = [], {name: i for i, name in enumerate(self._groups)}
        sizes = [0] * (2 * len(index))
        for s in self._slices:
            sizes[index[s.spec.name]] = sizes[len(index) + index[s.spec.name]] = math.prod(s.spec.shape)
        for s in self._trained():
            values, grad, group = self._memory.values[s.start : s.stop], self._grad[s.start : s.stop], self._groups[s.spec.name]
            self._optimizer.prepare(values, grad, self._slots(s), grad_scale, group.weight_decay, step)
            if s.counts:
                parts += [(index[s.spec.name], values), (len(index) + index[s.spec.name], grad)]
        weights, directions = np.split(norms_of_parts(self._grid.world, parts, sizes, self._exact), 2)
        adapted = {s.spec.name: index[s.spec.name] for s in self._trained() if s.spec.decay}
        return {name: self._optimizer.layer_factor(float(weights[i]), float(directions[i])) for name, i in adapted.items()}

    def _trained(self) -> Iterator[OwnedSlice]:
        return (s for s in self._slices if self._trains(s.spec))

    def _trains(self, spec: ParameterSpec) -> bool:
        return spec.role == "weight" and self._groups[spec.name].trained

    def _slots(self, s: OwnedSlice) -> dict[str, NDArray[np.float32]]:
        here = self._memory.slot_range(s.start, s.stop)
        return {name: self._memory.slots[name][here] for name in self._optimizer.slot_names}
