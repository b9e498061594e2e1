"""Run a schedule: the executor that moves micro-batches through the stages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.grid import ProcessGrid
from lepton_mpi.comm.waiting import wait
from lepton_mpi.nn.layer import Shapes
from lepton_mpi.nn.loss import Loss, LossResult
from lepton_mpi.nn.module import Context
from lepton_mpi.ops.array_module import array_module
from lepton_mpi.parallel.placement import StagePlan
from lepton_mpi.parallel.schedule import Action, Kind, forward_only, one_forward_one_backward
from lepton_mpi.parallel.stage import GradientReady, Stage
from lepton_mpi.runtime.mpi import MPI


@dataclass(frozen=True)
class MicroBatches:
    """This data rank's part of a batch, cut up.

    Attributes:
        sizes: samples of each micro-batch; may be 0.
        first_rows: place in the global batch of the first sample of each micro-batch.
        inputs: [b, ...] arrays on stages that need them, else empty.
        labels: [b, ...] arrays on the last stage, else empty.
        num_global: samples of the whole batch.
        step: number of the training step, from 0.
    """

    sizes: Sequence[int]
    first_rows: Sequence[int]
    inputs: Sequence[Any]
    labels: Sequence[Any]
    num_global: int
    step: int = 0


@dataclass(frozen=True)
class LocalLoss:
    """What the last stage found on this rank's samples: sums, as in `LossResult`."""

    loss: float = 0.0
    weight: float = 0.0
    num_correct: int = 0
    num_counted: int = 0


class _Mail:
    """Messages with the neighbouring stages. A micro-batch's activation and gradient have tags of their own.

    Activations of several arrays travel as several messages of one tag, which MPI keeps in order.
    """

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm
        self._pending: list[tuple[MPI.Request, Any]] = []

    def send(self, x: Any, to: int, tag: int) -> None:
        """Start sending; the buffers are kept until `flush`. Local."""
        for array in x if isinstance(x, tuple) else (x,):
            host = np.ascontiguousarray(array if isinstance(array, np.ndarray) else array_module(array).asnumpy(array))
            self._pending.append((self._comm.Isend(host, to, tag), host))

    def receive(self, rows: int, shapes: Shapes, source: int, tag: int, like: Any) -> Any:
        """Wait for a message."""
        arrays = []
        for shape in shapes:
            host = np.empty((rows, *shape), np.float32)
            wait(self._comm.Irecv(host, source, tag), f"the message of stage {source}")
            arrays.append(like.asarray(host))
        return arrays[0] if len(arrays) == 1 else tuple(arrays)

    def flush(self) -> None:
        """Wait until all that was sent has left."""
        for request, _ in self._pending:
            wait(request, "the next stage to receive")
        self._pending.clear()


class Pipeline:
    """Drive one stage through schedules, exchanging activations and gradients with its neighbours."""

    def __init__(self, grid: ProcessGrid, stage: Stage, plan: StagePlan, xp: Any, pad_id: int | None = None) -> None:
        """Make the executor.

        Args:
            grid: the process grid.
            stage: this rank's layers.
            plan: what they are; tells what is received from the stages before and after.
            xp: module of the arrays, numpy or cupy.
            pad_id: see `ModelSpec.pad_id`; all stages need the inputs then.
        """
        self._grid = grid
        self._stage = stage
        self._in_shapes = plan.in_shapes
        self._out_shapes = plan.out_shapes
        self._xp = xp
        self._pad_id = pad_id

    def with_shapes(self, in_shapes: Shapes, out_shapes: Shapes) -> Pipeline:
        """Return an executor of the same layers for samples of another shape. Local.

        Args:
            in_shapes, out_shapes: what is received from the stages before and after, see `stage_shapes`.
        """
        other = copy(self)
        other._in_shapes, other._out_shapes = in_shapes, out_shapes
        return other

    @collective("grid.model")
    def train(self, batch: MicroBatches, loss: Loss, factor: float, ready: GradientReady) -> LocalLoss:
        """Run forward and backward over all micro-batches; gradients add up in the parameters.

        Collective over grid.model.

        Args:
            batch: this data rank's part of the batch.
            loss: the end of the model.
            factor: factor of the gradient.
            ready: told from where on the flat gradient buffer is complete, falling.

        Returns:
            What the last stage found; zeros on other stages.
        """
        num = len(batch.sizes)
        schedule = one_forward_one_backward(self._grid.stage_index, self._grid.shape.stages, num)
        step = _Step(self, batch, loss, factor, ready)
        step.run(schedule)
        found = step.found
        return LocalLoss(
            sum(result.loss for result in found),
            sum(result.weight for result in found),
            sum(result.num_correct for result in found),
            sum(result.num_counted for result in found),
        )

    @collective("grid.model")
    def infer(self, batch: MicroBatches) -> list[Any]:
        """Run forward only.

        Collective over grid.model.

        Args:
            batch: this data rank's part of the batch; labels are not looked at.

        Returns:
            Outputs [b, ...] of every micro-batch on the last stage; empty list elsewhere.
        """
        step = _Step(self, batch, None, 0.0, lambda offset: None)
        step.run(forward_only(self._grid.stage_index, self._grid.shape.stages, len(batch.sizes)))
        return step.outputs if self._grid.is_last_stage else []


class _Step:
    """The state of one pass: what is in flight."""

    def __init__(self, pipeline: Pipeline, batch: MicroBatches, loss: Loss | None, factor: float, ready: GradientReady) -> None:
        self._grid = pipeline._grid
        self._stage = pipeline._stage
        self._in_shapes = pipeline._in_shapes
        self._out_shapes = pipeline._out_shapes
        self._xp = pipeline._xp
        self._pad_id = pipeline._pad_id
        self._batch = batch
        self._loss = loss
        self._factor = factor
        self._ready = ready
        self._mail = _Mail(self._grid.stage)
        self._activations: dict[int, Any] = {}
        self._saved: dict[int, Any] = {}
        self._gradients: dict[int, Any] = {}
        self._pending: dict[int, Any] = {}
        self.outputs: list[Any] = []
        self.found: list[LossResult] = []

    def run(self, schedule: Iterable[Action]) -> None:
        """Do all actions of a schedule, then wait until all that was sent has left."""
        for action in schedule:
            self._act(action.kind, action.micro_batch)
        self._mail.flush()

    def _act(self, kind: Kind, m: int) -> None:
        before, after = self._grid.stage_index - 1, self._grid.stage_index + 1
        rows = self._batch.sizes[m]
        if kind is Kind.RECEIVE_ACTIVATION:
            self._activations[m] = self._mail.receive(rows, self._in_shapes, before, 2 * m, self._xp)
        elif kind is Kind.FORWARD:
            x = self._batch.inputs[m] if self._grid.is_first_stage else self._activations.pop(m)
            self._activations[m], self._saved[m] = self._stage.forward(x, self._context(m))
            if self._grid.is_last_stage:
                self._end(m)
        elif kind is Kind.SEND_ACTIVATION:
            self._mail.send(self._activations.pop(m), after, 2 * m)
        elif kind is Kind.RECEIVE_GRADIENT:
            self._gradients[m] = self._mail.receive(rows, self._out_shapes, after, 2 * m + 1, self._xp)
        elif kind is Kind.BACKWARD_INPUT:
            dy, saved = self._gradients.pop(m), self._saved.pop(m)
            self._gradients[m], self._pending[m] = self._stage.backward_input(dy, saved)
        elif kind is Kind.SEND_GRADIENT:
            self._mail.send(self._gradients.pop(m), before, 2 * m + 1)
        elif kind is Kind.BACKWARD_WEIGHT:
            self._stage.backward_weight(self._pending.pop(m), self._tell(m))
        else:
            self._stage.backward(self._gradients.pop(m), self._saved.pop(m), self._tell(m))

    def _context(self, m: int) -> Context:
        batch = self._batch
        mask = None if self._pad_id is None else batch.inputs[m] != self._pad_id
        return Context(self._loss is not None, batch.step, batch.first_rows[m], batch.num_global, mask)

    def _end(self, m: int) -> None:
        """Take the output of the model: its loss and gradient, or keep it where nothing is trained."""
        output = self._activations.pop(m)
        if self._loss is None:
            self.outputs.append(output)
            return
        result = self._loss(output, self._batch.labels[m] if self._batch.labels else None, self._factor)
        self._gradients[m] = result.gradient
        self.found.append(replace(result, gradient=None))

    def _tell(self, m: int) -> GradientReady:
        """Tell of gradients only after the last micro-batch: only then they are complete."""
        return self._ready if m == len(self._batch.sizes) - 1 else lambda offset: None
