"""The ways in which sums travel between nodes, by the names that configurations and programs use.

Nothing here loads the C++ extension, which is for one MPI: a program that has not started MPI yet may import it.
"""

from __future__ import annotations

from dataclasses import dataclass

from lepton_mpi.errors import CodecError

TOPK = "topk"
POWERSGD = "powersgd"


@dataclass(frozen=True)
class Mode:
    """A way to travel.

    Attributes:
        name: name in the configuration.
        number: number of the codec in the C++ interface and in the wire format; None: no codec, but exact sums of factors.
        needs_feedback: whether it loses so much that training needs the error to be sent later.
    """

    name: str
    number: int | None
    needs_feedback: bool


MODES: dict[str, Mode] = {
    mode.name: mode
    for mode in (
        Mode("exact", 0, False),
        Mode("bf16", 1, False),
        Mode("fp16", 3, False),
        Mode("int8", 2, False),
        Mode("int4", 4, True),
        Mode("sign1", 5, True),
        Mode(TOPK, 6, True),
        Mode(POWERSGD, None, True),
    )
}


def codec_number(name: str) -> int:
    """Return the number of the codec of a mode. Local.

    Raises:
        CodecError: there is no such mode, or it is no codec.
    """
    mode = MODES.get(name)
    if mode is None:
        raise CodecError(f"expected one of {', '.join(MODES)}, received {name!r}; set reduce.mode to one of them")
    if mode.number is None:
        raise CodecError(f"{name} is no codec: it sums factors of matrices, exactly")
    return mode.number


def needs_feedback(names: tuple[str, ...]) -> bool:
    """Return whether one of some modes needs error feedback. Local."""
    return any(MODES[name].needs_feedback for name in names)
