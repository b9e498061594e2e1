"""SHA-256 of large data by pieces, so that ranks share the work and a damaged piece can be named.

The digest of a file is the SHA-256 of the SHA-256 digests (32 bytes each) of its pieces, one after the other:
see docs/data_format.md.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence

from lepton_mpi.comm.agreement import do_on_all
from lepton_mpi.comm.contract import collective
from lepton_mpi.errors import DataError
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.runtime.ranges import split_range

PIECE_NBYTES = 16 << 20
# Returns the bytes of a range [start, stop) of the data; fewer where it ends before.
ReadRange = Callable[[int, int], bytes]


def read_file(path: str | os.PathLike[str]) -> ReadRange:
    """Return what reads ranges of a file. Local; the file is opened for each range."""

    def read(start: int, stop: int) -> bytes:
        with open(path, "rb", buffering=0) as file:
            file.seek(start)
            parts = []
            while start < stop and (part := file.read(stop - start)):
                parts.append(part)
                start += len(part)
            return b"".join(parts)

    return read


@collective("comm")
def digest_pieces(read: ReadRange, nbytes: int, comm: MPI.Intracomm, piece_nbytes: int = PIECE_NBYTES) -> tuple[str, ...]:
    """Return the SHA-256 of each piece of some data, in hexadecimal.

    Collective over comm; each rank reads a share of the pieces.

    Args:
        read: gives the bytes of a range.
        nbytes: size of the data.
        comm: ranks that share the work.
        piece_nbytes: size of all pieces but the last.

    Raises:
        LeptonError: what reading raised, on any rank.
    """
    num_pieces = -(-nbytes // piece_nbytes)
    first, last = split_range(num_pieces, comm.Get_size(), comm.Get_rank())
    own = do_on_all(
        comm, lambda: [_digest(read, k * piece_nbytes, min((k + 1) * piece_nbytes, nbytes)) for k in range(first, last)]
    )
    everywhere: list[list[str]] = comm.allgather(own)
    return tuple(digest for part in everywhere for digest in part)


@collective("comm")
def check_pieces(read: ReadRange, nbytes: int, expected: Sequence[str], place: str, comm: MPI.Intracomm, piece_nbytes: int) -> None:
    """Compare data with the digests of its pieces.

    Collective over comm; each rank reads a share of the pieces.

    Args:
        read: gives the bytes of a range.
        nbytes: size of the data.
        expected: SHA-256 of each piece, in hexadecimal.
        place: file or dataset, for messages.
        comm: ranks that share the work.
        piece_nbytes: size of all pieces but the last.

    Raises:
        DataError: a piece differs; names the first one.
    """
    found = digest_pieces(read, nbytes, comm, piece_nbytes)
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        if one != other:
            start = number * piece_nbytes
            raise DataError(
                f"{place}, offset {start}: expected bytes {start} .. {min(start + piece_nbytes, nbytes) - 1} with SHA-256 {other}, "
                f"found {one}: the data was changed or damaged since it was written, copy or convert it again"
            )


def combine_digests(pieces: Sequence[str]) -> str:
    """Return the digest of all the data from the digests of its pieces, in hexadecimal. Local."""
    return hashlib.sha256(b"".join(map(bytes.fromhex, pieces))).hexdigest()


def _digest(read: ReadRange, start: int, stop: int) -> str:
    return hashlib.sha256(read(start, stop)).hexdigest()
