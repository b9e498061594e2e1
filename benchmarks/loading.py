"""Reading batches in random order: `Loader.batch` for every data format against NumPy reading the same bytes.

    python benchmarks/loading.py                        # all formats, prints one JSON object
    python benchmarks/loading.py --formats npy packed   # some of them

Each format gets data of its own. NumPy's side has the inputs and labels of the same samples as plain .npy files, memory-mapped, and
takes the rows of the same batches by fancy indexing: as they are, and then as float32 values that are normalised, which is what the
loader returns. The sides take turns; a figure is the median of the repeats. Everything is in the page cache. Formats that fit into
the loader's cache (64 MiB as float32) are read from memory, as in training; `cached` says which.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import platform
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lepton_mpi.runtime.mpi import start_mpi
from lepton_mpi.runtime.threads import limit_threads, usable_cores

limit_threads(1)  # before NumPy is loaded

import h5py  # noqa: E402
import numpy as np  # noqa: E402

from lepton_mpi.config.schema import DataConfig  # noqa: E402
from lepton_mpi.data.dataset import ArrayDataset, Dataset  # noqa: E402
from lepton_mpi.data.loader import Loader  # noqa: E402
from lepton_mpi.data.needs import DataNeeds  # noqa: E402
from lepton_mpi.data.normalisation import Normalisation  # noqa: E402
from lepton_mpi.data.sampler import Sampler  # noqa: E402
from lepton_mpi.data.splits import open_whole  # noqa: E402
from lepton_mpi.data.storage.conversion import Source, convert  # noqa: E402

BATCH, CONTEXT = 128, 256
CACHE_NBYTES = 64 << 20
RANDOM = np.random.default_rng(0)
IDS = ("tokens", "pystdlib", "text", "movielens")


def make_images(count: int = 40_000, shape: tuple[int, ...] = (28, 28)) -> tuple[np.ndarray, np.ndarray]:
    return RANDOM.integers(0, 256, (count, *shape), np.uint8), RANDOM.integers(0, 10, count)


def make_table(rows: int = 200_000) -> tuple[np.ndarray, np.ndarray]:
    return RANDOM.standard_normal((rows, 9)).astype(np.float32), RANDOM.integers(0, 5, rows)


def make_idx(folder: Path) -> dict[str, str]:
    x, y = make_images()
    for name, array in (("x", x), ("y", y.astype(np.uint8))):
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        (folder / name).write_bytes(header + array.tobytes())
    return {"path": "x", "labels_path": "y"}


def make_npy(folder: Path) -> dict[str, str]:
    x, y = make_images()
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    return {"path": "x.npy", "labels_path": "y.npy"}


def make_npz(folder: Path) -> dict[str, str]:
    x, y = make_images()
    np.savez(folder / "d.npz", x=x, y=y)
    return {"path": "d.npz"}


def make_hdf5(folder: Path) -> dict[str, str]:
    x, y = make_images()
    with h5py.File(folder / "d.h5", "w") as file:
        file["x"], file["y"] = x, y
    return {"path": "d.h5"}


def make_hdf5_converted(folder: Path) -> dict[str, str]:
    convert(ArrayDataset("made", *make_images(), 10), Source("npz"), folder / "d.h5", start_mpi())
    return {"path": "d.h5"}


def make_packed(folder: Path) -> dict[str, str]:
    convert(ArrayDataset("made", *make_images(), 10), Source("npz"), folder / "d", start_mpi())
    return {"path": "d"}


def make_csv(folder: Path) -> dict[str, str]:
    x, y = make_table()
    names = ",".join(f"c{column}" for column in range(x.shape[1]))
    np.savetxt(folder / "d.csv", np.column_stack([x, y]), "%.6g", ",", header=names + ",label", comments="")
    return {"path": "d.csv"}


def make_parquet(folder: Path) -> dict[str, str]:
    import pyarrow
    import pyarrow.parquet

    x, y = make_table()
    columns = {f"c{column}": x[:, column] for column in range(x.shape[1])}
    pyarrow.parquet.write_table(pyarrow.table({**columns, "label": y}), folder / "d.parquet")
    return {"path": "d.parquet"}


def make_cifar10(folder: Path) -> dict[str, str]:
    records = RANDOM.integers(0, 256, (10_000, 3073), np.uint8)
    records[:, 0] %= 10
    records.tofile(folder / "data_batch_1.bin")
    return {"path": "data_batch_1.bin"}


def make_webdataset(folder: Path) -> dict[str, str]:
    x, y = make_images(4000, (3, 64, 64))
    with tarfile.open(folder / "d.tar", "w") as tar:
        for number, (image, label) in enumerate(zip(x, y, strict=True)):
            array = io.BytesIO()
            np.save(array, image)
            for suffix, content in (("npy", array.getvalue()), ("cls", str(label).encode())):
                info = tarfile.TarInfo(f"{number:06}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return {"path": "d.tar"}


def make_pictures(folder: Path) -> dict[str, str]:
    from PIL import Image

    x, y = make_images(2000, (64, 64, 3))
    for number, (image, label) in enumerate(zip(x, y, strict=True)):
        (folder / "d" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / "d" / str(label) / f"{number}.png")
    return {"path": "d"}


def make_tokens(folder: Path) -> dict[str, str]:
    RANDOM.integers(0, 50_000, 8_000_000).astype("<u2").tofile(folder / "d.bin")
    return {"path": "d.bin"}


def make_movielens(folder: Path) -> dict[str, str]:
    ratings = np.column_stack(
        [RANDOM.integers(1, 5000, 200_000), RANDOM.integers(1, 2000, 200_000), RANDOM.integers(1, 6, 200_000)]
    )
    np.savetxt(
        folder / "ratings.csv",
        np.column_stack([ratings, ratings[:, 0]]),
        "%d",
        ",",
        header="userId,movieId,rating,timestamp",
        comments="",
    )
    return {"path": "ratings.csv"}


def make_nothing(folder: Path) -> dict[str, str]:
    return {}


# By the name that is printed: the data.format, and what makes its data.
FORMATS: dict[str, tuple[str, Callable[[Path], dict[str, str]]]] = {
    "digits": ("digits", make_nothing),
    "idx": ("idx", make_idx),
    "npy": ("npy", make_npy),
    "npz": ("npz", make_npz),
    "csv": ("csv", make_csv),
    "parquet": ("parquet", make_parquet),
    "hdf5": ("hdf5", make_hdf5),
    "hdf5 (converted)": ("hdf5", make_hdf5_converted),
    "packed": ("packed", make_packed),
    "cifar10": ("cifar10", make_cifar10),
    "images": ("images", make_pictures),
    "webdataset": ("webdataset", make_webdataset),
    "movielens": ("movielens", make_movielens),
    "tokens": ("tokens", make_tokens),
    "pystdlib": ("pystdlib", make_nothing),
    "synthetic": ("synthetic", make_nothing),
}


def save_plainly(dataset: Dataset, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the inputs and labels of a data set as memory maps of plain .npy files."""
    everything = np.arange(dataset.num_samples)
    for name, array in (("inputs", dataset.read_raw(everything)), ("labels", dataset.read_labels(everything))):
        np.save(folder / f"plain-{name}.npy", array)
    return np.load(folder / "plain-inputs.npy", mmap_mode="r"), np.load(folder / "plain-labels.npy", mmap_mode="r")


def time_batches(work: Callable[[int], Any], num_samples: int, batches: int) -> float:
    """Return samples per second of some batches, each named by its place in the epoch."""
    positions = [BATCH * number % (num_samples // BATCH * BATCH) for number in range(batches)]
    start = time.perf_counter()
    for position in positions:
        work(position)
    return batches * BATCH / (time.perf_counter() - start)


def measure(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    format_name, make = FORMATS[name]
    ids = format_name in IDS
    config = DataConfig(format=format_name, **{key: str(folder / value) for key, value in make(folder).items()})  # type: ignore[arg-type]
    start = time.perf_counter()
    dataset = open_whole(config, start_mpi(), DataNeeds("class", CONTEXT))
    opened_s = time.perf_counter() - start
    x, y = save_plainly(dataset, folder)
    order, normalisation = Sampler(dataset.num_samples, 0), Normalisation(np.float32(3.0), np.float32(2.0))
    loader = Loader(dataset, order, normalisation, global_batch=BATCH, input_kind="ids" if ids else "values")

    def read(position: int) -> tuple[np.ndarray, np.ndarray]:
        indices = batches[position]
        return x[indices], y[indices]

    def prepare(position: int) -> tuple[np.ndarray, np.ndarray]:
        inputs, labels = read(position)
        values = inputs.astype(np.int64) if ids else (inputs.astype(np.float32) - normalisation.mean) / normalisation.std
        return values, labels

    batches = {position: order.indices(0, position, BATCH) for position in range(0, dataset.num_samples - BATCH + 1, BATCH)}
    ours, plain = loader.batch(0, 0), prepare(0)
    if not (np.array_equal(ours.inputs[0], plain[0]) and np.array_equal(ours.labels[0], plain[1])):
        raise SystemExit(f"{name}: the two sides read different batches")
    sides = {"loader": lambda position: loader.batch(0, position), "numpy": read, "numpy_prepared": prepare}
    found: dict[str, list[float]] = {side: [] for side in sides}
    for repeat in range(arguments.repeats + 1):
        for side, work in sides.items():
            rate = time_batches(work, dataset.num_samples, arguments.batches)
            if repeat:  # the first is the warm-up
                found[side].append(rate)
    rates = {side: statistics.median(values) for side, values in found.items()}
    elements = dataset.num_samples * (math.prod(dataset.input_shape) + math.prod(dataset.label_shape))
    return {
        "format": name,
        "samples": dataset.num_samples,
        "shape": list(dataset.input_shape),
        "dtype": str(x.dtype),
        "sample_nbytes": x[0].nbytes + y[:1].nbytes,
        "cached": format_name not in ("tokens", "pystdlib") and 4 * elements <= CACHE_NBYTES,
        "open_s": opened_s,
        "loader_samples_per_s": rates["loader"],
        "numpy_samples_per_s": rates["numpy"],
        "numpy_prepared_samples_per_s": rates["numpy_prepared"],
        "of_numpy": rates["loader"] / rates["numpy"],
        "of_numpy_prepared": rates["loader"] / rates["numpy_prepared"],
    }


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS), help="formats to measure (all)")
    parser.add_argument("--batches", type=int, default=100, help="batches of a repeat (100)")
    parser.add_argument("--repeats", type=int, default=7, help="measured repeats (7)")
    return parser.parse_args()


def main() -> None:
    arguments, results, left_out = read_arguments(), [], {}
    for name in arguments.formats:
        with tempfile.TemporaryDirectory() as folder:
            try:
                results.append(measure(name, Path(folder), arguments))
            except ImportError as error:
                left_out[name] = str(error)
    result = {
        "benchmark": "loading",
        "batch": BATCH,
        "context": CONTEXT,
        "batches": arguments.batches,
        "repeats": arguments.repeats,
        "cores": usable_cores(),
        "formats": results,
        "left_out": left_out,
        "machine": platform.machine(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
