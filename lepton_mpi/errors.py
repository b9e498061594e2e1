"""The errors that lepton_mpi raises for its users.

Every message says what was expected, what came, and what to do. `exit_code` is what a
command ends with when the error reaches its top: 2 for input that the user can mend,
1 for everything that happened while training.
"""

from __future__ import annotations

from typing import ClassVar


class LeptonError(Exception):
    """Base of all errors raised on purpose by lepton_mpi."""

    exit_code: ClassVar[int] = 1


class ConfigError(LeptonError):
    """A configuration key is unknown, has the wrong type, or an impossible value."""

    exit_code = 2


class GridError(LeptonError):
    """The process grid does not fit the ranks, the model, or the MPI start-up."""

    exit_code = 2


class DataError(LeptonError):
    """An input file is missing, malformed, or does not fit the model."""

    exit_code = 2


class CheckpointError(LeptonError):
    """A checkpoint cannot be written, is damaged, or belongs to another model."""

    exit_code = 2


class FormatVersionError(CheckpointError):
    """A whole checkpoint is of a format that this version does not read."""


class SaveError(CheckpointError):
    """A run that went well so far could not save its state."""

    exit_code = 1


class NativeError(LeptonError):
    """The C++ extension is missing or was built for another MPI or version."""

    exit_code = 2


class CodecError(LeptonError):
    """A payload does not fit its codec or buffer."""


class RankMismatchError(LeptonError):
    """Ranks disagree where they must be equal."""


class NonFiniteError(LeptonError):
    """A loss or gradient became NaN or infinite."""


class StallError(LeptonError):
    """A wait for other ranks lasted longer than allowed."""


class SharedMemoryError(LeptonError):
    """The ranks of a node cannot share as much memory as the model needs."""

    exit_code = 2
