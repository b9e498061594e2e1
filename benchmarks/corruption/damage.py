"""What can happen to a checkpoint: every kind of damage that benchmarks/corruption_trials.py does."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lepton_mpi.checkpoint.manifest import digest_ranges

DATA, MANIFEST = "data.h5", "MANIFEST.json"


@dataclass(frozen=True)
class Subject:
    """What a trial may change.

    Attributes:
        folder: the checkpoint of step 4, a copy.
        older: the checkpoint of step 2 of the same run, which must stay whole.
        other: the checkpoint of step 4 of another run.
        data: what the data file holds.
        tensors: ranges of bytes of tensors' elements in it.
        frame: the ranges around them.
        gaps: ranges of the frame that no object of HDF5 uses.
    """

    folder: Path
    older: Path
    other: Path
    data: bytes
    tensors: list[tuple[int, int]]
    frame: list[tuple[int, int]]
    gaps: list[tuple[int, int]]


Damage = Callable[[random.Random, Subject], None]


def position_in(ranges: list[tuple[int, int]], rng: random.Random) -> int:
    """Return a byte of some ranges, each as likely as the others."""
    index = rng.randrange(sum(stop - start for start, stop in ranges))
    for start, stop in ranges:
        if index < stop - start:
            return start + index
        index -= stop - start
    raise IndexError("no such byte")


def overwrite(file: Path, position: int, new: bytes) -> None:
    with file.open("r+b") as stream:
        stream.seek(position)
        stream.write(new)


def flip(name: str, ranges: str = "") -> Damage:
    """Return a damage that inverts one bit of a file, anywhere or in some ranges of it."""

    def change(rng: random.Random, subject: Subject) -> None:
        file = subject.folder / name
        position = position_in(getattr(subject, ranges), rng) if ranges else rng.randrange(file.stat().st_size)
        overwrite(file, position, bytes([file.read_bytes()[position] ^ (1 << rng.randrange(8))]))

    return change


def burst(rng: random.Random, subject: Subject) -> None:
    """Put noise in the place of some bytes."""
    position = rng.randrange(len(subject.data))
    overwrite(subject.folder / DATA, position, rng.randbytes(rng.randint(2, 600)))
    os.truncate(subject.folder / DATA, len(subject.data))


def draw_block(rng: random.Random, subject: Subject) -> tuple[int, int]:
    """Return start and length of a block as disks and page caches have them."""
    nbytes = rng.choice((64, 512, 4096))
    return rng.randrange(len(subject.data) // nbytes) * nbytes, nbytes


def zero_block(rng: random.Random, subject: Subject) -> None:
    """Lose a write."""
    start, nbytes = draw_block(rng, subject)
    overwrite(subject.folder / DATA, start, bytes(nbytes))


def stale_block(rng: random.Random, subject: Subject) -> None:
    """Leave a block as an older checkpoint had it."""
    start, nbytes = draw_block(rng, subject)
    overwrite(subject.folder / DATA, start, (subject.older / DATA).read_bytes()[start : start + nbytes])


def swap_blocks(rng: random.Random, subject: Subject) -> None:
    """Let two writes go to each other's place."""
    (a, nbytes), other = draw_block(rng, subject), rng.randrange(len(subject.data))
    b = other // nbytes * nbytes
    length = min(nbytes, len(subject.data) - b)
    overwrite(subject.folder / DATA, a, subject.data[b : b + length])
    overwrite(subject.folder / DATA, b, subject.data[a : a + length])


def truncate(name: str) -> Damage:
    def change(rng: random.Random, subject: Subject) -> None:
        nbytes = (subject.folder / name).stat().st_size
        os.truncate(subject.folder / name, rng.choice((0, nbytes - 1, rng.randrange(nbytes), rng.randrange(nbytes) // 512 * 512)))

    return change


def extend(name: str) -> Damage:
    def change(rng: random.Random, subject: Subject) -> None:
        with (subject.folder / name).open("ab") as stream:
            stream.write(rng.choice((b"\0", b"\n", b" ", bytes(4096), rng.randbytes(rng.randint(1, 5000)))))

    return change


def remove(*names: str) -> Damage:
    def change(rng: random.Random, subject: Subject) -> None:
        for name in names:
            (subject.folder / name).unlink()

    return change


def take_from_older(*names: str) -> Damage:
    """Return a damage that swaps files with the checkpoint of step 2 of the same run, of which only the newer is looked at."""

    def change(rng: random.Random, subject: Subject) -> None:
        for name in names:
            shutil.copyfile(subject.older / name, subject.folder / name)

    return change


def take_from_other(name: str) -> Damage:
    def change(rng: random.Random, subject: Subject) -> None:
        shutil.copyfile(subject.other / name, subject.folder / name)

    return change


def replace_by(name: str, how: str) -> Damage:
    """Return a damage that puts a link, a pipe or a folder in the place of a file."""

    def change(rng: random.Random, subject: Subject) -> None:
        file, aside = subject.folder / name, subject.folder / "aside"
        file.rename(aside)
        if how == "link_to_itself":
            file.symlink_to(aside)
        elif how == "link_to_older":
            file.symlink_to(subject.older / name)
        elif how == "hard_link_to_older":
            os.link(subject.older / name, file)
        elif how == "dangling_link":
            file.symlink_to(subject.folder / "nowhere")
        elif how == "link_loop":
            file.symlink_to(file)
        elif how == "pipe":
            os.mkfifo(file)
        else:
            file.mkdir()

    return change


def link_folder(rng: random.Random, subject: Subject) -> None:
    """Make the newer checkpoint's folder a link to the older one's."""
    shutil.rmtree(subject.folder)
    subject.folder.symlink_to(subject.older)


def seal(subject: Subject, changes: dict[str, object]) -> None:
    """Change the manifest and give it a digest that fits, as only somebody who means it can."""
    body = json.loads((subject.folder / MANIFEST).read_text()) | changes
    del body["sha256"]
    sha256 = hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    (subject.folder / MANIFEST).write_text(json.dumps({**body, "sha256": sha256}, indent=1) + "\n")


def forge_structure(rng: random.Random, subject: Subject) -> None:
    """Flip a bit of the structure and seal it, so that HDF5 gets to see it."""
    flip(DATA, "frame")(rng, subject)
    seal(subject, {"frame_sha256": digest_ranges(subject.folder / DATA, subject.frame)})


def forge_manifest(rng: random.Random, subject: Subject) -> None:
    """Put anything in the place of a value of the manifest, and seal it."""
    name = rng.choice(list(json.loads((subject.folder / MANIFEST).read_text()).keys() - {"sha256"}))
    odd: tuple[object, ...] = (None, -1, 2**64, 1e999, "", "x", [], [[0, 2**62]], [[5, 1]], [[-9, 3]], [["a", {}]], {"a": {}}, [0])
    seal(subject, {name: rng.choice(odd)})


STAND_INS = ("link_to_itself", "link_to_older", "hard_link_to_older", "dangling_link", "link_loop", "pipe", "folder")
# Bit flips make up most of the trials, as there are most different ones.
KINDS: dict[str, tuple[int, Damage]] = {
    "flip: elements": (20, flip(DATA, "tensors")),
    "flip: structure, attributes, digests": (20, flip(DATA, "frame")),
    "flip: gaps": (10, flip(DATA, "gaps")),
    "flip: manifest": (15, flip(MANIFEST)),
    "noise": (8, burst),
    "block: zeroed": (8, zero_block),
    "block: of an older checkpoint": (8, stale_block),
    "block: swapped": (10, swap_blocks),
    "truncated: data": (6, truncate(DATA)),
    "truncated: manifest": (6, truncate(MANIFEST)),
    "extended: data": (4, extend(DATA)),
    "extended: manifest": (4, extend(MANIFEST)),
    "removed: data": (1, remove(DATA)),
    "removed: manifest": (1, remove(MANIFEST)),
    "removed: both": (1, remove(DATA, MANIFEST)),
    "swapped: data of another step": (1, take_from_older(DATA)),
    "swapped: manifest of another step": (1, take_from_older(MANIFEST)),
    "swapped: both of another step": (1, take_from_older(DATA, MANIFEST)),
    "swapped: data of another run": (1, take_from_other(DATA)),
    "swapped: manifest of another run": (1, take_from_other(MANIFEST)),
    "replaced: folder by a link": (1, link_folder),
    "forged: structure": (8, forge_structure),
    "forged: manifest": (8, forge_manifest),
    **{f"replaced: {name} by {how}": (1, replace_by(name, how)) for name in (DATA, MANIFEST) for how in STAND_INS},
}


def fingerprint(folder: Path) -> tuple[object, ...]:
    """Return what of a checkpoint a damage could change."""
    files = [folder / name for name in (DATA, MANIFEST)]
    kinds = [folder.is_symlink(), *(file.lstat().st_mode & 0o170000 if os.path.lexists(file) else 0 for file in files)]
    inodes = [file.lstat().st_nlink if file.is_file() else 0 for file in files]
    return (*kinds, *inodes, *(file.read_bytes() if file.is_file() and not file.is_symlink() else b"" for file in files))


def find_gaps(data: bytes, frame: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the zeros before each aligned tensor, which HDF5 leaves unused."""
    gaps = []
    for start, stop in frame:
        used = len(data[start:stop].rstrip(b"\0"))
        if stop % 4096 == 0 and stop - start - used > 16:
            gaps.append((start + used + 8, stop))  # 8: what is in use may end with zeros
    return gaps
