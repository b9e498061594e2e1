"""Whether ranks are held against each other before every collective: `LEPTON_STRICT` and `LEPTON_STRICT_LIMIT_S`."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

from lepton_mpi.errors import ConfigError

_SWITCH = "LEPTON_STRICT"
LIMIT_VARIABLE = "LEPTON_STRICT_LIMIT_S"
# How long ranks may come one after the other. With the two seconds that a failure takes to end the job, the message is
# there within ten seconds.
_LIMIT_S = 5.0


def is_strict(environ: Mapping[str, str]) -> bool:
    """Return whether an environment asks for strict mode. Local."""
    return environ.get(_SWITCH, "") not in ("", "0")


def strict_limit_s(environ: Mapping[str, str]) -> float:
    """Return how many seconds a rank may stay away from a collective in strict mode. Local.

    Raises:
        ConfigError: the environment has something that is no number of seconds.
    """
    text = environ.get(LIMIT_VARIABLE, "")
    try:
        limit_s = float(text or _LIMIT_S)
    except ValueError:
        limit_s = math.nan
    if not 0.0 < limit_s < math.inf:
        raise ConfigError(f"{LIMIT_VARIABLE}: expected a number of seconds above 0, got {text!r}")
    return limit_s


def configured_limit_s() -> float:
    """Return the limit that this process's environment sets. Local; see `strict_limit_s`."""
    return strict_limit_s(os.environ)


# Read once: what the mark of collective functions does is decided when they are defined.
STRICT = is_strict(os.environ)
