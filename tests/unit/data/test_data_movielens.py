"""MovieLens ratings in the three forms they come in, and every way in which they can be wrong."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from damaged_bytes import damaged
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lepton_mpi.config.schema import DataConfig
from lepton_mpi.data.formats.movielens import open_movielens
from lepton_mpi.data.needs import DataNeeds
from lepton_mpi.data.splits import open_datasets, open_inputs
from lepton_mpi.errors import DataError
from lepton_mpi.runtime.mpi import start_mpi

RNG = np.random.default_rng(0)
USERS, MOVIES = RNG.permutation(1000)[:20] * 7, RNG.permutation(10**6)[:30] + 5
ROWS = [(int(RNG.choice(USERS)), int(RNG.choice(MOVIES)), int(RNG.integers(1, 11)) / 2, 1_000_000_000 + i) for i in range(300)]
FORMS = {"ratings.csv": ",", "ratings.dat": "::", "u.data": "\t"}
HEADER = "userId,movieId,rating,timestamp\n"


def lines(name: str, rows: list[tuple[int, int, float, int]], newline: str = "\n") -> str:
    text = "".join(FORMS[name].join(map(str, row)) + newline for row in rows)
    return HEADER.replace("\n", newline) + text if name == "ratings.csv" else text


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_round_trip(tmp_path: Path, name: str, newline: str) -> None:
    (tmp_path / name).write_bytes(lines(name, ROWS, newline).encode())
    users, movies = sorted({row[0] for row in ROWS}), sorted({row[1] for row in ROWS})
    for path in (tmp_path, tmp_path / name):
        dataset = open_movielens(str(path))
        assert (dataset.num_samples, dataset.input_shape, dataset.label_kind) == (300, (2,), "value")
        ids, labels = dataset.read_ids(np.arange(300)), dataset.read_labels(np.arange(300))
        assert labels.dtype == np.float32
        assert [(users[u], movies[m], y) for (u, m), y in zip(ids, labels, strict=True)] == [row[:3] for row in ROWS]
        assert (ids.min(axis=0) == 0).all() and ids.max(axis=0).tolist() == [len(users) - 1, len(movies) - 1]
        assert open_inputs(str(path), "", DataConfig(), DataNeeds("none")).label_kind == "none"
    config = DataConfig(format="movielens", path=str(tmp_path), test_fraction=0.1)
    splits = open_datasets(config, start_mpi(), DataNeeds("value"))
    assert (splits.train.num_samples, splits.test.num_samples) == (270, 30)


def test_classes_are_whole_stars(tmp_path: Path) -> None:
    path = tmp_path / "u.data"
    path.write_text("1\t2\t5\t0\n1\t3\t1\t0")
    dataset = open_movielens(str(path), label_kind="class")
    assert dataset.num_classes == 6 and dataset.read_labels(np.arange(2)).tolist() == [5, 1]
    path.write_text("1\t2\t5\t0\n1\t3\t1.5\t0\n")
    with pytest.raises(DataError, match=r"u\.data, sample 1: expected an integer label"):
        open_movielens(str(path), label_kind="class")


def test_a_test_file_has_the_numbers_of_the_training_file(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(lines("ratings.csv", ROWS))
    (tmp_path / "test.csv").write_text(lines("ratings.csv", ROWS[100:105]))
    config = DataConfig(format="movielens", path=str(tmp_path / "train.csv"), test_path=str(tmp_path / "test.csv"))
    splits = open_datasets(config, start_mpi(), DataNeeds("none"))
    np.testing.assert_array_equal(splits.test.read_ids(np.arange(5)), splits.train.read_ids(np.arange(100, 105)))
    for row, message in (
        ((1, ROWS[0][1], 1.0, 0), "line 3: expected a user of the training file, found 1"),
        ((ROWS[0][0], 10**9, 1.0, 0), "line 3: expected a movie of the training file, found 1000000000"),
    ):
        (tmp_path / "test.csv").write_text(lines("ratings.csv", [ROWS[0], row]))
        with pytest.raises(DataError, match=r"test\.csv, " + message):
            open_datasets(config, start_mpi(), DataNeeds("none"))


WRONG = {
    "empty": ("", "found an empty file"),
    "header only": (HEADER, "expected ratings below the line of names"),
    "header": (HEADER.replace("timestamp", "timestamps"), "line 1: expected 'userId,movieId,rating,timestamp', found"),
    "columns": ("1,2,3\n", "line 1: expected user, movie, rating and time, separated by"),
    "hdf5": ("\x89HDF\r\n\x1a\n", "line 1: .*"),
    "short": (HEADER + "1,2,3,4\n1,2,3\n", r"line 3: expected user, movie, rating, time, .* found '1,2,3'"),
    "text": (HEADER + "1,2,3,4\n1,a,3,4\n", "line 3: .* found '1,a,3,4'"),
    "negative": ("1::-2::3::4\n", "line 1: .* found '1,-2,3,4'"),
    "fraction": ("1::2::3::4\n1.5::2::3::4\n", "line 2: .* found '1.5,2,3,4'"),
    "comma": ("1::2::3::4\n1,2::2::3::4\n", "line 2: .* found '1;2,2,3,4'"),
    "huge": ("1::1e16::3::4\n", "line 1: .* found '1,1e16,3,4'"),
    "nan": ("1\t1\t2\t4\r\n1\t1\tnan\t4\r\n", "line 2: .* found '1,1,nan,4'"),
    "infinite": ("1\t1\t1e39\t4\n", "line 1: .* found"),
    "blank": ("1\t1\t1\t4\n\n1\t1\t1\t4\n", "line 2: .* found ''"),
}


@pytest.mark.parametrize("text, message", WRONG.values(), ids=WRONG)
def test_damage_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=message) as caught:
        open_movielens(str(path))
    assert str(path) in str(caught.value)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a folder with ratings\.csv, ratings\.dat, u\.data"):
        open_movielens(str(tmp_path))
    with pytest.raises(DataError, match="No such file"):
        open_movielens(str(tmp_path / "none"))


def test_other_tables_are_no_ratings(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text("a,label\n1,2\n")
    assert open_inputs(str(tmp_path / "ratings.csv"), "", DataConfig()).num_classes == 3  # read as CSV


def test_many_ratings_are_read_fast(tmp_path: Path) -> None:
    path = tmp_path / "ratings.csv"
    path.write_text(HEADER + "".join(f"{i % 6040},{i * 37 % 3706},{i % 10 / 2},97830{i:04}\n" for i in range(200_000)))
    start = time.perf_counter()
    dataset = open_movielens(str(path))
    assert dataset.num_samples == 200_000 and time.perf_counter() - start < 5  # takes 0.5 s on a free core


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=2000)
@given(
    content=st.one_of(
        damaged(*(lines(name, ROWS[:5]).encode() for name in FORMS)),
        st.text(st.sampled_from("01,,::\t.\n\r-enaf"), max_size=40).map(lambda text: b"1,2,3,4\n" + text.encode()),
    )
)
def test_any_bytes_are_data_or_a_data_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    try:
        dataset = open_movielens(str(path))
    except DataError as error:
        assert str(path) in str(error)
        return
    ids = dataset.read_ids(np.arange(dataset.num_samples))
    assert ids.shape == (dataset.num_samples, 2) and np.isfinite(dataset.read_labels(np.arange(len(ids)))).all()
