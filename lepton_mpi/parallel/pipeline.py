"""Run a schedule: the executor that moves micro-batches through the stages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.grid import ProcessGrid
from lepton_mpi.comm.waiting import wait
from lepton_mpi.ops.array_module import array_module
from lepton_mpi.ops.softmax_cross_entropy import softmax_cross_entropy, softmax_cross_entropy_backward
from lepton_mpi.parallel.schedule import Action, Kind, forward_only, one_forward_one_backward
from lepton_mpi.parallel.stage import LayerDone, Stage
from lepton_mpi.runtime.mpi import MPI


@dataclass(frozen=True)
class MicroBatches:
    """This data rank's part of a batch, cut up.

    Attributes:
        sizes: samples of each micro-batch; may be 0.
        inputs: [b, F] arrays on the first stage, else empty.
        labels: int64 [b] arrays on the last stage, else empty.
        weight: what every sample counts in the loss: 1 / samples of the whole batch.
    """

    sizes: Sequence[int]
    inputs: Sequence[Any]
    labels: Sequence[Any]
    weight: float


@dataclass(frozen=True)
class LocalLoss:
    """What the last stage found on this rank's samples: the weighted sum of losses and how many it got right."""

    loss: float = 0.0
    num_correct: int = 0


class _Mail:
    """Messages with the neighbouring stages. A micro-batch's activation and gradient have tags of their own."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm
        self._pending: list[tuple[MPI.Request, Any]] = []

    def send(self, x: Any, to: int, tag: int) -> None:
        """Start sending; the buffer is kept until `flush`. Local."""
        host = np.ascontiguousarray(x if isinstance(x, np.ndarray) else array_module(x).asnumpy(x))
        self._pending.append((self._comm.Isend(host, to, tag), host))

    def receive(self, shape: tuple[int, int], source: int, tag: int, like: Any) -> Any:
        """Wait for a message."""
        host = np.empty(shape, np.float32)
        wait(self._comm.Irecv(host, source, tag), f"the message of stage {source}")
        return like.asarray(host)

    def flush(self) -> None:
        """Wait until all that was sent has left."""
        for request, _ in self._pending:
            wait(request, "the next stage to receive")
        self._pending.clear()


class Pipeline:
    """Drive one stage through schedules, exchanging activations and gradients with its neighbours."""

    def __init__(self, grid: ProcessGrid, stage: Stage, in_width: int, out_width: int, xp: Any) -> None:
        """Make the executor.

        Args:
            grid: the process grid.
            stage: this rank's layers.
            in_width: values a sample received from the stage before.
            out_width: values a sample received, as gradient, from the stage after.
            xp: module of the arrays, numpy or cupy.
        """
        self._grid = grid
        self._stage = stage
        self._in_width = in_width
        self._out_width = out_width
        self._xp = xp

    @collective("grid.model")
    def train(self, batch: MicroBatches, layer_done: LayerDone) -> LocalLoss:
        """Run forward and backward over all micro-batches; gradients add up in the parameters.

        Collective over grid.model.

        Args:
            batch: this data rank's part of the batch.
            layer_done: called with each layer's index once its gradients are complete, last layer first.

        Returns:
            What the last stage found; zeros on other stages.
        """
        num = len(batch.sizes)
        schedule = one_forward_one_backward(self._grid.stage_index, self._grid.shape.stages, num)
        step = _Step(self, batch, layer_done)
        step.run(schedule)
        return LocalLoss(step.loss, step.num_correct)

    @collective("grid.model")
    def infer(self, batch: MicroBatches) -> list[Any]:
        """Run forward only.

        Collective over grid.model.

        Args:
            batch: this data rank's part of the batch; labels are not looked at.

        Returns:
            Outputs [b, C] of every micro-batch on the last stage; empty list elsewhere.
        """
        unlabelled = replace(batch, labels=())
        step = _Step(self, unlabelled, lambda layer: None)
        step.run(forward_only(self._grid.stage_index, self._grid.shape.stages, len(batch.sizes)))
        return step.outputs if self._grid.is_last_stage else []


class _Step:
    """The state of one pass: what is in flight."""

    def __init__(self, pipeline: Pipeline, batch: MicroBatches, layer_done: LayerDone) -> None:
        self._grid = pipeline._grid
        self._stage = pipeline._stage
        self._in_width = pipeline._in_width
        self._out_width = pipeline._out_width
        self._xp = pipeline._xp
        self._batch = batch
        self._layer_done = layer_done
        self._mail = _Mail(self._grid.stage)
        self._activations: dict[int, Any] = {}
        self._saved: dict[int, Any] = {}
        self._gradients: dict[int, Any] = {}
        self._pending: dict[int, Any] = {}
        self.outputs: list[Any] = []
        self.loss = 0.0
        self.num_correct = 0

    def run(self, schedule: Iterable[Action]) -> None:
        """Do all actions of a schedule, then wait until all that was sent has left."""
        for action in schedule:
            self._act(action.kind, action.micro_batch)
        self._mail.flush()

    def _act(self, kind: Kind, m: int) -> None:
        before, after = self._grid.stage_index - 1, self._grid.stage_index + 1
        rows = self._batch.sizes[m]
        if kind is Kind.RECEIVE_ACTIVATION:
            self._activations[m] = self._mail.receive((rows, self._in_width), before, 2 * m, self._xp)
        elif kind is Kind.FORWARD:
            x = self._batch.inputs[m] if self._grid.is_first_stage else self._activations.pop(m)
            self._activations[m], self._saved[m] = self._stage.forward(x)
            if self._grid.is_last_stage:
                self._end(m)
        elif kind is Kind.SEND_ACTIVATION:
            self._mail.send(self._activations.pop(m), after, 2 * m)
        elif kind is Kind.RECEIVE_GRADIENT:
            self._gradients[m] = self._mail.receive((rows, self._out_width), after, 2 * m + 1, self._xp)
        elif kind is Kind.BACKWARD_INPUT:
            dy, saved = self._gradients.pop(m), self._saved.pop(m)
            self._gradients[m], self._pending[m] = self._stage.backward_input(dy, saved)
        elif kind is Kind.SEND_GRADIENT:
            self._mail.send(self._gradients.pop(m), before, 2 * m + 1)
        elif kind is Kind.BACKWARD_WEIGHT:
            self._stage.backward_weight(self._pending.pop(m), self._done(m))
        else:
            self._stage.backward(self._gradients.pop(m), self._saved.pop(m), self._done(m))

    def _end(self, m: int) -> None:
        """Take the output of the model: its loss and gradient, or keep it where there are no labels."""
        output = self._activations.pop(m)
        if not self._batch.labels:
            self.outputs.append(output)
            return
        labels = self._batch.labels[m]
        loss, probabilities = softmax_cross_entropy(output, labels, self._batch.weight)
        self.loss += loss
        self.num_correct += int((probabilities.argmax(axis=1) == labels).sum()) if len(labels) else 0
        self._gradients[m] = softmax_cross_entropy_backward(probabilities, labels, self._batch.weight)

    def _done(self, m: int) -> LayerDone:
        """Report layers only after the last micro-batch: only then their gradients are complete."""
        return self._layer_done if m == len(self._batch.sizes) - 1 else lambda layer: None
