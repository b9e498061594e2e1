"""Make lepton_mpi/data/formats/digits.h5 from the CSV form of the UCI digits (scikit-learn's sklearn/datasets/data/digits.csv.gz).

Usage: python scripts/make_digits.py digits.csv.gz lepton_mpi/data/formats/digits.h5
"""

from __future__ import annotations

import argparse

import h5py
import numpy as np

NUM_SAMPLES, SIDE, LARGEST_VALUE, NUM_CLASSES = 1797, 8, 16, 10
ATTRIBUTES = {
    "title": "Optical Recognition of Handwritten Digits, test part",
    "creators": "E. Alpaydin, C. Kaynak",
    "source": "UCI Machine Learning Repository, https://doi.org/10.24432/C50P49",
    "licence": "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/",
    "changes": "stored as HDF5; values as published",
}


def main() -> None:
    """Read the CSV, check it, and write the HDF5 file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="digits.csv.gz: 64 pixels and a label a line, no column names")
    parser.add_argument("target", help="the HDF5 file to write")
    arguments = parser.parse_args()
    table = np.loadtxt(arguments.source, delimiter=",")
    pixels, labels = table[:, :-1], table[:, -1]
    if table.shape != (NUM_SAMPLES, SIDE * SIDE + 1) or (table != np.floor(table)).any() or table.min() < 0:
        raise SystemExit(f"{arguments.source}: expected {NUM_SAMPLES} rows of {SIDE * SIDE} pixels and a label")
    if pixels.max() > LARGEST_VALUE or not np.array_equal(np.unique(labels), np.arange(NUM_CLASSES)):
        raise SystemExit(f"{arguments.source}: expected pixels 0 .. {LARGEST_VALUE} and labels 0 .. {NUM_CLASSES - 1}")
    with h5py.File(arguments.target, "w", libver=("earliest", "v108")) as file:
        file.attrs.update(ATTRIBUTES)
        images = pixels.astype(np.uint8).reshape(NUM_SAMPLES, SIDE, SIDE)
        for name, values in (("x", images), ("y", labels.astype(np.uint8))):
            file.create_dataset(name, data=values, chunks=values.shape, compression="gzip", compression_opts=9, track_times=False)


if __name__ == "__main__":
    main()
