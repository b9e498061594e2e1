"""Normalisation of inputs: (x - mean) / std, measured once over the training set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.comm.agreement import raise_together
from lepton_mpi.comm.contract import collective
from lepton_mpi.data.dataset import Dataset
from lepton_mpi.errors import CheckpointError, DataError
from lepton_mpi.runtime.mpi import MPI

# A chunk is the unit of measuring. Its size must depend on the data set alone, never on the
# ranks, since the rounding of the sums depends on it.
_CHUNK_SAMPLES = 4096
_CHUNK_ELEMENTS = 1 << 22  # 32 MiB in float64


@final
class Normalisation:
    """The map x -> (x - mean) / std.

    Args:
        mean: float32, one number (shape ()) or of the shape of a sample.
        std: the same; where it is 0 the feature is constant, and 1 is used.
    """

    def __init__(self, mean: NDArray[np.float32], std: NDArray[np.float32]) -> None:
        self.mean = np.asarray(mean, np.float32)
        self.std = np.where(np.asarray(std, np.float32) == 0, np.float32(1), std).astype(np.float32)

    def apply(self, x: NDArray[np.float32], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Return normalised inputs, float32[B, *input_shape]. Local.

        Args:
            x: float32[B, *input_shape], raw.
            out: where to write the result; may be `x`; None: a new array.
        """
        out = np.subtract(x, self.mean, out=out)
        return np.divide(out, self.std, out=out)

    @classmethod
    def identity(cls, shape: tuple[int, ...] = ()) -> Normalisation:
        """Return the normalisation that changes nothing. Local.

        Args:
            shape: shape of mean and standard deviation; (): one number, good for any samples.
        """
        return cls(np.zeros(shape, np.float32), np.ones(shape, np.float32))

    def to_arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return what a checkpoint keeps: `mean` and `std`. Local."""
        return {"mean": self.mean, "std": self.std}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Normalisation:
        """Return the normalisation that a checkpoint kept. Local.

        Raises:
            CheckpointError: `mean` or `std` is missing, or their shapes differ.
        """
        missing = sorted({"mean", "std"} - set(arrays))
        if missing:
            raise CheckpointError(
                f"normalisation: expected arrays mean and std, missing {', '.join(missing)}: take another checkpoint"
            )
        mean, std = arrays["mean"], arrays["std"]
        if mean.shape != std.shape:
            raise CheckpointError(
                f"normalisation: expected one shape, found mean {mean.shape}, std {std.shape}: take another checkpoint"
            )
        return cls(mean, std)


@collective("comm")
def measure_normalisation(dataset: Dataset, kind: str, comm: MPI.Intracomm) -> Normalisation:
    """Measure mean and standard deviation of a data set: over everything, or of each feature.

    Collective over comm. The data set is cut into chunks that do not depend on the number of
    ranks; ranks take them in turn, and all merge the results in the order of the chunks, in
    float64, so any number of ranks finds the same bits.

    Args:
        dataset: the training set; each rank reads its chunks only.
        kind: `data.normalise`: global, feature, or none (mean 0, std 1, nothing is read).
        comm: ranks that share the work; all of them must call.

    Raises:
        DataError: an input is NaN or infinite, or cannot be read, on any rank.
    """
    if kind == "none":
        return Normalisation.identity()
    num_features = math.prod(dataset.input_shape)
    chunk_samples = max(1, min(_CHUNK_SAMPLES, _CHUNK_ELEMENTS // num_features))
    num_chunks = -(-dataset.num_samples // chunk_samples)
    num_moments = num_features if kind == "feature" else 1
    total = np.zeros(1 + 2 * num_moments)  # count, means, sums of squared deviations
    gathered = np.empty((comm.size, total.size))
    for first in range(0, num_chunks, comm.size):
        mine, error = np.zeros_like(total), None
        try:
            mine = _measure_chunk(dataset, (first + comm.rank) * chunk_samples, chunk_samples, kind == "feature", total.size)
        except Exception as found:
            error = found
        raise_together(comm, error)
        comm.Allgather(mine, gathered)
        for part in gathered:
            total = _merge(total, part)
    shape = dataset.input_shape if kind == "feature" else ()
    mean, squares = total[1 : 1 + num_moments], total[1 + num_moments :]
    std = np.sqrt(squares / max(total[0], 1.0))
    return Normalisation(mean.astype(np.float32).reshape(shape), std.astype(np.float32).reshape(shape))


def _measure_chunk(dataset: Dataset, start: int, count: int, by_feature: bool, size: int) -> NDArray[np.float64]:
    """Return count, means and sums of squared deviations of a chunk; zeros beyond the end of the data set."""
    indices = np.arange(start, max(start, min(start + count, dataset.num_samples)))
    if not len(indices):
        return np.zeros(size)
    inputs = dataset.read_inputs(indices).reshape(len(indices), -1)
    finite = np.isfinite(inputs).all(axis=1)
    if not finite.all():
        raise DataError(
            f"{dataset.name}, sample {start + int(np.argmin(finite))}: expected finite inputs, found NaN or infinity: "
            "mend or drop the sample"
        )
    values = inputs.astype(np.float64) if by_feature else inputs.reshape(-1, 1).astype(np.float64)
    mean = values.mean(axis=0)
    return np.concatenate([[len(values)], mean, np.square(values - mean).sum(axis=0)])


def _merge(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the moments of two sets together.

    Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing
    sample variances", 1979, equation 2.1.
    """
    if b[0] == 0:
        return a
    n = (len(a) - 1) // 2
    count = a[0] + b[0]
    delta = b[1 : 1 + n] - a[1 : 1 + n]
    mean = a[1 : 1 + n] + delta * (b[0] / count)
    squares = a[1 + n :] + b[1 + n :] + delta**2 * (a[0] * b[0] / count)
    return np.concatenate([[count], mean, squares])
