"""Make texts to classify from Python's own standard library: which package does a piece of source text come from?

    python examples/text_classification/source_text.py FOLDER

writes FOLDER/train.npz and FOLDER/test.npz: x, int32 [pieces, 64], numbers of words; y, int64 [pieces], numbers of packages. Word
0 fills short pieces up, 1 begins every piece, 2 stands for words that the training files have too seldom. Every fifth file
is for the test set as a whole, so that no piece of it is beside one of the training set.
"""

from __future__ import annotations

import re
import sys
import sysconfig
from collections import Counter
from pathlib import Path

import numpy as np

PACKAGES = ("asyncio", "ctypes", "email", "http", "importlib", "multiprocessing", "unittest", "xml")
LENGTH = 64  # words of a piece
NUM_WORDS = 4000
PAD, START, RARE = range(3)

Pieces = list[tuple[list[str], int]]


def cut_pieces() -> tuple[Pieces, Pieces]:
    """Return pieces for training and for testing: words, and the number of the package."""
    library = Path(sysconfig.get_path("stdlib"))
    parts: tuple[Pieces, Pieces] = ([], [])
    for label, package in enumerate(PACKAGES):
        files = sorted(path for path in (library / package).rglob("*.py") if not {"test", "tests"} & set(path.parts))
        for number, path in enumerate(files):
            words = re.findall(r"[A-Za-z]+|[0-9]+|[^\sA-Za-z0-9]", path.read_text("utf-8"))
            words = [word for word in words if word.lower() not in PACKAGES]  # or the name alone would often tell
            pieces = (words[first : first + LENGTH - 1] for first in range(0, len(words), LENGTH - 1))
            parts[number % 5 == 4].extend((piece, label) for piece in pieces)
    return parts


def write(path: Path, pieces: Pieces, numbers: dict[str, int]) -> None:
    """Write pieces as rows of numbers."""
    rows = np.full((len(pieces), LENGTH), PAD, np.int32)
    for row, (words, _) in zip(rows, pieces, strict=True):
        row[: len(words) + 1] = [START, *(numbers.get(word, RARE) for word in words)]
    np.savez(path, x=rows, y=np.array([label for _, label in pieces], np.int64))
    print(f"{path}: {len(pieces)} pieces")


def main() -> None:
    """Write both files."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    train, test = cut_pieces()
    counts = Counter(word for words, _ in train for word in words)
    numbers = {word: number for number, (word, _) in enumerate(counts.most_common(NUM_WORDS - RARE - 1), RARE + 1)}
    write(folder / "train.npz", train, numbers)
    write(folder / "test.npz", test, numbers)


if __name__ == "__main__":
    main()
