"""Run a schedule: the executor that moves micro-batches through the stages."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

from lepton_mpi.comm.contract import collective
from lepton_mpi.comm.grid import ProcessGrid
from lepton_mpi.nn.layer import Shapes
from lepton_mpi.nn.loss import Loss, LossResult
from lepton_mpi.nn.module import Context
from lepton_mpi.nn.piecewise import join, piece_rows
from lepton_mpi.parallel.placement import StagePlan
from lepton_mpi.parallel.schedules.forward_only import ForwardOnly
from lepton_mpi.parallel.schedules.registry import SCHEDULES
from lepton_mpi.parallel.schedules.schedule import Action, Kind, PipelineShape, Schedule
from lepton_mpi.parallel.stage import CompleteFrom, GradientObserver, Stage
from lepton_mpi.parallel.stage_mail import StageMail


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
        pieces: rows of each piece of the only micro-batch, where layers keep pieces apart, see `Context`; None: they do not.
        num_pieces: pieces of the whole batch.
    """

    sizes: Sequence[int]
    first_rows: Sequence[int]
    inputs: Sequence[Any]
    labels: Sequence[Any]
    num_global: int
    step: int = 0
    pieces: tuple[int, ...] | None = None
    num_pieces: int = 0


@dataclass(frozen=True)
class LocalLoss:
    """What the last stage found on this rank's samples, see `LossResult`.

    Attributes:
        losses, weights: sums over each micro-batch, or over each piece of the only one.
        num_correct, num_counted: sums over all.
    """

    losses: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()
    num_correct: int = 0
    num_counted: int = 0


# What is in flight is kept by (micro-batch, chunk).
_Key = tuple[int, int]
# Receives that are posted before their turn, so that messages need not wait for this stage to look.
_POSTED_AHEAD = 2


class Pipeline:
    """Drive the virtual stages of a rank through schedules, exchanging activations and gradients with the other stages.

    Attributes:
        layer_starts: see `StagePlan.layer_starts`.
        schedule: the order of passes in training.
    """

    def __init__(
        self,
        grid: ProcessGrid,
        stages: Sequence[Stage],
        plan: StagePlan,
        xp: Any,
        pad_id: int | None = None,
        schedule: Schedule = SCHEDULES["1f1b"],
        num_positions: int = 0,
    ) -> None:
        """Make the executor.

        Args:
            grid: the process grid.
            stages: this rank's virtual stages.
            plan: what they are; tells what is received from those before and after.
            xp: module of the arrays, numpy or cupy.
            pad_id: see `ModelSpec.pad_id`; all stages need the inputs then.
            schedule: the order of passes in training.
            num_positions: see `Context`.
        """
        self._num_positions = num_positions
        self._grid = grid
        self._stages = tuple(stages)
        self.layer_starts = plan.layer_starts
        self.schedule = schedule
        self._ends = tuple((virtual.in_shapes, virtual.out_shapes) for virtual in plan.virtual_stages)
        self._xp = xp
        self._pad_id = pad_id

    def with_shapes(self, ends: Sequence[tuple[Shapes, Shapes]], num_positions: int = 0) -> Pipeline:
        """Return an executor of the same layers for samples of another shape. Local.

        Args:
            ends: what enters and leaves each virtual stage, see `stage_shapes`.
            num_positions: see `Context`.
        """
        other = copy(self)
        other._num_positions = num_positions
        other._ends = tuple(ends)
        return other

    def shape(self, micro_batches: int) -> PipelineShape:
        """Return the sizes that a schedule needs to know. Local."""
        return PipelineShape(self._grid.shape.stages, micro_batches, len(self._stages))

    @collective("grid.model")
    def train(self, batch: MicroBatches, loss: Loss, factor: float, observer: GradientObserver) -> LocalLoss:
        """Run forward and backward over all micro-batches; gradients add up in the parameters.

        Collective over grid.model.

        Args:
            batch: this data rank's part of the batch, of as many micro-batches on all ranks of grid.model.
            loss: the end of the model.
            factor: factor of the gradient.
            observer: told of every layer and micro-batch whose gradient was added; `CompleteFrom` starts an exchange.

        Returns:
            What the last stage found; zeros on other stages.
        """
        step = _Step(self, batch, loss, factor, observer)
        step.run(self.schedule)
        found = step.found
        return LocalLoss(
            tuple(result.loss for result in found),
            tuple(result.weight for result in found),
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
        step = _Step(self, batch, None, 0.0, CompleteFrom((), 0, lambda offset: None))
        step.run(ForwardOnly())
        return step.outputs if self._grid.is_last_stage else []


class _Step:
    """The state of one pass: what is in flight."""

    def __init__(
        self, pipeline: Pipeline, batch: MicroBatches, loss: Loss | None, factor: float, observer: GradientObserver
    ) -> None:
        self._stage = pipeline._grid.stage_index
        self._shape = pipeline.shape(len(batch.sizes))
        self._layers = pipeline._stages
        self._ends = pipeline._ends
        self._xp = pipeline._xp
        self._pad_id = pipeline._pad_id
        self._num_positions = pipeline._num_positions
        self._batch = batch
        self._loss = loss
        self._factor = factor
        self._observer = observer
        self._mail = StageMail(pipeline._grid.stage)
        self._activations: dict[_Key, Any] = {}
        self._saved: dict[_Key, Any] = {}
        self._gradients: dict[_Key, Any] = {}
        self._pending: dict[_Key, Any] = {}
        self.outputs: list[Any] = []
        self.found: list[LossResult] = []

    def run(self, schedule: Schedule) -> None:
        """Do all actions of a schedule, then wait until all that was sent has left."""
        actions = list(schedule.actions(self._stage, self._shape))
        receives = deque(a for a in actions if a.kind in (Kind.RECEIVE_ACTIVATION, Kind.RECEIVE_GRADIENT))
        self._post(receives, _POSTED_AHEAD)
        for action in actions:
            self._act(action)
            self._mail.move()
            if action.kind in (Kind.RECEIVE_ACTIVATION, Kind.RECEIVE_GRADIENT):
                self._post(receives, 1)
        self._mail.flush()

    def _post(self, receives: deque[Action], num: int) -> None:
        """Start the next receives of a schedule."""
        for _ in range(min(num, len(receives))):
            kind, m, c = receives.popleft()
            shapes = self._ends[c][0 if kind is Kind.RECEIVE_ACTIVATION else 1]
            self._mail.post(self._batch.sizes[m], shapes, *self._address(kind, c))

    def _address(self, kind: Kind, chunk: int) -> tuple[int, int]:
        """Return the stage on the other side of a message, and the tag: that of the later virtual stage, and the direction."""
        own = chunk * self._shape.stages + self._stage
        later = own if kind in (Kind.RECEIVE_ACTIVATION, Kind.SEND_GRADIENT) else own + 1
        other = later - 1 if later == own else later
        return other % self._shape.stages, 2 * later + (kind in (Kind.SEND_GRADIENT, Kind.RECEIVE_GRADIENT))

    def _act(self, action: Action) -> None:
        kind, m, c = action
        at, stage = (m, c), self._layers[c]
        if kind is Kind.RECEIVE_ACTIVATION:
            self._activations[at] = self._mail.receive(*self._address(kind, c), self._xp)
        elif kind is Kind.FORWARD:
            self._forward(at, stage)
        elif kind is Kind.SEND_ACTIVATION:
            self._mail.send(self._activations.pop(at), *self._address(kind, c))
        elif kind is Kind.RECEIVE_GRADIENT:
            self._gradients[at] = self._mail.receive(*self._address(kind, c), self._xp)
        elif kind is Kind.BACKWARD_INPUT:
            self._gradients[at], self._pending[at] = stage.backward_input(self._gradients.pop(at), self._saved.pop(at))
        elif kind is Kind.SEND_GRADIENT:
            self._mail.send(self._gradients.pop(at), *self._address(kind, c))
        elif kind is Kind.BACKWARD_WEIGHT:
            stage.backward_weight(self._pending.pop(at), self._observer, m)
        else:
            stage.backward(self._gradients.pop(at), self._saved.pop(at), self._observer, m)

    def _forward(self, at: _Key, stage: Stage) -> None:
        m, c = at
        virtual = c * self._shape.stages + self._stage
        x = self._batch.inputs[m] if virtual == 0 else self._activations.pop(at)
        y, saved = stage.forward(x, self._context(m))
        if self._loss is not None:
            self._saved[at] = saved
        if virtual < self._shape.virtual_stages - 1:
            self._activations[at] = y
        elif self._loss is None:
            self.outputs.append(y)
        else:
            labels = self._batch.labels[m] if self._batch.labels else None
            pieces = (slice(None),) if self._batch.pieces is None else piece_rows(self._batch.pieces)
            results = [self._loss(y[rows], None if labels is None else labels[rows], self._factor) for rows in pieces]
            self._gradients[at] = join([result.gradient for result in results])
            self.found += [replace(result, gradient=None) for result in results]

    def _context(self, m: int) -> Context:
        batch = self._batch
        mask = None if self._pad_id is None else batch.inputs[m] != self._pad_id
        training = self._loss is not None
        divided = self._loss is not None and self._loss.takes_divided
        first_row, pieces = batch.first_rows[m], (batch.pieces, batch.num_pieces)
        return Context(training, batch.step, first_row, batch.num_global, mask, *pieces, divided, self._num_positions)
