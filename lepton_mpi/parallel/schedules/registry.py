"""The schedules by the names that a configuration gives them."""

from __future__ import annotations

from lepton_mpi.errors import ConfigError
from lepton_mpi.parallel.schedules.gpipe import GPipe
from lepton_mpi.parallel.schedules.interleaved import Interleaved
from lepton_mpi.parallel.schedules.one_forward_one_backward import OneForwardOneBackward
from lepton_mpi.parallel.schedules.schedule import Schedule
from lepton_mpi.parallel.schedules.zero_bubble import ZeroBubble

SCHEDULES: dict[str, Schedule] = {
    "1f1b": OneForwardOneBackward(),
    "gpipe": GPipe(),
    "interleaved": Interleaved(),
    "zero_bubble": ZeroBubble(),
}


def choose_virtual_stages(schedule: str, requested: int, stages: int, num_layers: int) -> int:
    """Return how many runs of layers a stage holds. Local.

    Args:
        schedule: a name of `SCHEDULES`.
        requested: as configured; 0: two with the interleaved schedule where there are layers enough, else one.
        stages: pipeline stages.
        num_layers: layers of the model.

    Raises:
        ConfigError: the schedule has no use for several, or there are too few layers.
    """
    if schedule != "interleaved":
        if requested > 1:
            raise ConfigError(f"grid.virtual_stages: {requested} need train.schedule = interleaved, which is {schedule}")
        return 1
    chosen = requested or (2 if num_layers >= 2 * stages else 1)
    if chosen * stages > num_layers:
        raise ConfigError(
            f"grid.virtual_stages: {stages} stages of {chosen} need {stages * chosen} layers, the model has {num_layers}"
        )
    return chosen
