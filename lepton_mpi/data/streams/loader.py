"""Batches of a stream: what a `Loader` is for a data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.comm.agreement import do_on_all, do_on_root
from lepton_mpi.comm.contract import collective
from lepton_mpi.config.schema import DataConfig
from lepton_mpi.data.dataset import ArrayDataset
from lepton_mpi.data.loader import Batch, BatchCut
from lepton_mpi.data.needs import DataNeeds
from lepton_mpi.data.normalisation import Normalisation
from lepton_mpi.data.streams.records import Columns, Records, RecordStream, await_records, is_fifo, start_spool
from lepton_mpi.errors import ConfigError, DataError
from lepton_mpi.models.family import InputKind
from lepton_mpi.runtime.mpi import MPI

_LARGEST_ID: Final = 2.0**53 - 1  # up to here a double holds every integer


@final
@dataclass(frozen=True)
class OpenedStream:
    """A stream to train on.

    Attributes:
        records: the lines.
        columns: makes arrays of them.
        samples: a data set without any sample that tells their shapes.
        idle_s: the stream has ended when nothing came for so long.
    """

    records: RecordStream
    columns: Columns
    samples: ArrayDataset
    idle_s: float


@collective("comm")
def open_stream(config: DataConfig, comm: MPI.Intracomm, needs: DataNeeds) -> OpenedStream:
    """Open the stream that `data.path` names, and wait for its first line.

    Collective over comm. Of a FIFO rank 0 begins to keep what comes out of it.

    Args:
        config: the `data` section.
        comm: all ranks.
        needs: what the task needs of the data.

    Raises:
        ConfigError: the task makes its own labels.
        DataError: there is no stream, or its columns are not those that the configuration names.
    """
    if needs.labels == "none":
        raise ConfigError(
            "model.task: a ranking or a masked language model makes its labels of samples with numbers, and records of a stream "
            "have none: choose another task, or another data.format"
        )
    path = do_on_root(comm, lambda: start_spool(config.path) if is_fifo(config.path) else config.path)

    def open_own() -> OpenedStream:
        records = RecordStream(path)
        names = records.names(config.stream_idle_s)
        columns_of_values = [name.strip() for name in config.label_column.split(",")]
        labels = columns_of_values if needs.labels == "value" else [config.label_column]
        columns = Columns(names, labels, needs.labels, config.num_classes)
        inputs, found = columns.parse([])
        samples = ArrayDataset(config.path, inputs, found, config.num_classes)
        return OpenedStream(records, columns, samples, config.stream_idle_s)

    return do_on_all(comm, open_own)


@final
class StreamLoader:
    """Take this rank's part of the records that all ranks wait for together. Every record is used once, in order.

    Positions are those of the stream; the epoch is always 0.

    Args:
        opened: the records.
        normalisation: what is done to values.
        global_batch: records of a batch over all data ranks; the last one of the stream may have fewer.
        cut: how batches are cut over micro-batches and ranks; None: not.
        input_kind: "values", or "ids".
        want_inputs: whether batches carry inputs (the first stage).
        want_labels: whether batches carry labels (the last stage).
    """

    def __init__(
        self,
        opened: OpenedStream,
        normalisation: Normalisation,
        *,
        global_batch: int,
        cut: BatchCut | None = None,
        input_kind: InputKind = "values",
        want_inputs: bool = True,
        want_labels: bool = True,
    ) -> None:
        self._stream, self._columns, self._idle_s = opened.records, opened.columns, opened.idle_s
        self._normalisation, self._global_batch = normalisation, global_batch
        self._cut = cut or BatchCut()
        self._input_kind = input_kind
        self._want_inputs, self._want_labels = want_inputs, want_labels
        self._records = Records(0, 0, 0)

    @collective("comm")
    def await_batch(
        self, comm: MPI.Intracomm, position: int, stop_requested: Callable[[], bool]
    ) -> Literal["ready", "ended", "stopped"]:
        """Wait until the batch at a position is there.

        Collective over comm.

        Args:
            comm: all ranks.
            position: where the batch begins.
            stop_requested: whether this rank was told to stop.

        Raises:
            DataError: the stream cannot be read, on all ranks alike.
        """
        found = await_records(comm, self._stream, position, self._global_batch, self._idle_s, stop_requested)
        if not isinstance(found, Records):
            return found
        self._records = found
        return "ready"

    def batch(self, epoch: int, position: int) -> Batch:
        """Return the arrays of this rank's part of the batch that `await_batch` has found. Local.

        Raises:
            DataError: a record is none, or is not there.
        """
        records = self._records
        if records.position != position or records.count == 0:
            raise DataError(
                f"stream: expected to be asked for the batch at byte {records.position}, got {position}: a stream has no way back"
            )
        rows = self._cut.rows(records.count)
        sizes = [last - first for first, last in rows]
        lines = [line for first, last in rows for line in self._stream.read(records, first, last)]
        inputs, labels = self._columns.parse(lines)
        ends = np.cumsum(sizes)[:-1]
        is_ids = self._input_kind == "ids"
        arrays = _as_ids(inputs, lines) if is_ids else self._normalisation.apply(inputs.astype(np.float32))
        return Batch(
            epoch,
            position,
            records.count,
            sizes,
            [first for first, _ in rows],
            np.split(arrays, ends) if self._want_inputs else [],
            np.split(labels, ends) if self._want_labels else [],
            (0, records.following),
            self._cut.own_pieces(records.count),
            self._cut.num_pieces(records.count),
        )


def _as_ids(inputs: NDArray[np.float64], lines: Sequence[tuple[str, bytes]]) -> NDArray[np.int64]:
    """Return inputs that are numbers of tokens, users or items."""
    good = ((inputs >= 0) & (inputs <= _LARGEST_ID) & (inputs == np.floor(inputs))).all(axis=1)
    if not good.all():
        place, line = lines[int(np.argmin(good))]
        raise DataError(f"{place}: expected whole numbers from 0 for tokens, users or items, found {line.decode().strip()!r}")
    return inputs.astype(np.int64)
