"""Made data: equal however they are asked for, of the shapes asked for, and learnable far beyond chance."""

from __future__ import annotations

import numpy as np
import pytest

from lepton_mpi.config.schema import DataConfig
from lepton_mpi.data.formats.synthetic import SyntheticDataset
from lepton_mpi.data.formats.synthetic_tables import Credit
from lepton_mpi.data.needs import DataNeeds
from lepton_mpi.data.splits import open_datasets, open_test_set
from lepton_mpi.errors import ConfigError
from lepton_mpi.models.task import LabelKind
from lepton_mpi.runtime.mpi import start_mpi

# Kind, labels, shape of a sample, shape of a label, classes, and another shape to ask for.
KINDS: dict[str, tuple[LabelKind, tuple[int, ...], tuple[int, ...], int, tuple[int, ...]]] = {
    "images": ("class", (16, 16), (), 4, (3, 7, 5)),
    "blobs": ("class", (8,), (), 4, (3,)),
    "regression": ("value", (8,), (), 0, (1,)),
    "segmentation": ("class", (64, 64), (64, 64), 2, (13, 31)),
    "tokens": ("class", (32,), (), 4, (5,)),
    "ratings": ("value", (2,), (), 0, (7, 11)),
    "credit": ("class", (10,), (), 2, (10,)),
}


def everything(dataset: SyntheticDataset) -> tuple[np.ndarray, np.ndarray]:
    order = np.arange(dataset.num_samples)
    return dataset.read_raw(order), dataset.read_labels(order)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_follows_from_its_number_alone(kind: str) -> None:
    label_kind, input_shape, label_shape, num_classes, _ = KINDS[kind]
    dataset = SyntheticDataset(kind, 40, label_kind=label_kind)
    assert (dataset.input_shape, dataset.label_shape, dataset.num_classes) == (input_shape, label_shape, num_classes)
    x, y = everything(dataset)
    assert x.shape == (40, *input_shape) and y.shape == (40, *label_shape)
    assert y.dtype == (np.int64 if label_kind == "class" else np.float32)
    far = SyntheticDataset(kind, 10**9, label_kind=label_kind)
    for rows in (np.array([3]), np.array([39, 0, 0, 17]), np.arange(0), np.array([10**9 - 1])):
        found_x, found_y = far.read_raw(rows), far.read_labels(rows)
        assert found_x.shape == (len(rows), *input_shape) and found_y.shape == (len(rows), *label_shape)
        if (rows < 40).all():
            np.testing.assert_array_equal(found_x, x[rows])
            np.testing.assert_array_equal(found_y, y[rows])
    assert len(np.unique(x, axis=0)) == 40 or kind == "ratings"


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_label_kinds(kind: str) -> None:
    label_kind, _, _, num_classes, shape = KINDS[kind]
    dataset = SyntheticDataset(kind, 50, shape, label_kind=label_kind)
    assert everything(dataset)[0].shape[1:] == ((2,) if kind == "ratings" else shape)
    none = SyntheticDataset(kind, 50, label_kind="none")
    assert none.label_shape == () and (everything(none)[1] == -1).all()
    value = SyntheticDataset(kind, 50, label_kind="value")
    assert everything(value)[1].dtype == np.float32
    if num_classes:
        assert set(np.unique(everything(value)[1])) == {0, 1}  # answers of yes or no
    with pytest.raises(ConfigError, match=rf"data\.synthetic.*{kind}"):
        SyntheticDataset(kind, 50, (1, 2, 3, 4))
    config = DataConfig(format="synthetic", synthetic=kind, num_samples=50, synthetic_shape=shape)
    splits = open_datasets(config, start_mpi(), DataNeeds(label_kind))
    assert (splits.train.num_samples, splits.test.num_samples) == (40, 10)
    assert open_test_set(config, DataNeeds(label_kind)).num_samples == 10


@pytest.mark.parametrize(
    ("kind", "num_classes", "label_kind", "message"),
    [
        ("regression", 0, "class", "its labels are values"),
        ("ratings", 0, "class", "its labels are values"),
        ("regression", 3, "value", r"data\.num_classes: data\.synthetic regression has values"),
        ("ratings", 3, "none", r"data\.num_classes: data\.synthetic ratings has values"),
        ("segmentation", 3, "class", "2 classes, got 3"),
        ("credit", 3, "class", "2 classes, got .*data.num_classes = 3"),
    ],
)
def test_impossible_classes(kind: str, num_classes: int, label_kind: LabelKind, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SyntheticDataset(kind, 50, num_classes=num_classes, label_kind=label_kind)


def test_credit_has_ten_features() -> None:
    with pytest.raises(ConfigError, match="10 features"):
        SyntheticDataset("credit", 50, (9,))


def fit(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the outputs of a linear model on the second half, fitted to the first by ridge regression."""
    half = len(x) // 2
    x = np.column_stack([(x - x[:half].mean(0)) / (x[:half].std(0) + 1e-6), np.ones(len(x))])
    weights = np.linalg.solve(x[:half].T @ x[:half] + 10 * np.eye(x.shape[1]), x[:half].T @ y[:half])
    return x[half:] @ weights


@pytest.mark.parametrize(
    ("kind", "num_classes", "least"), [("images", 4, 0.9), ("images", 10, 0.6), ("blobs", 4, 0.85), ("tokens", 4, 0.85)]
)
def test_a_linear_model_tells_the_classes_apart(kind: str, num_classes: int, least: float) -> None:
    x, y = everything(SyntheticDataset(kind, 2000, num_classes=num_classes))
    if kind == "tokens":
        x = np.stack([np.bincount(row, minlength=64) for row in x])
    outputs = fit(x.reshape(2000, -1).astype(float), np.eye(num_classes)[y])
    accuracy = (outputs.argmax(1) == y[1000:]).mean()
    assert accuracy > least and np.bincount(y).min() > 2000 / num_classes * 0.8
    assert kind != "images" or accuracy < 0.999  # not so easy that nothing is learnt from it


def test_regression_is_a_linear_law() -> None:
    x, y = everything(SyntheticDataset("regression", 2000, label_kind="value"))
    error = fit(x.astype(float), y) - y[1000:]
    assert 0.09 < np.sqrt(np.mean(error**2)) < 0.12 and y.std() > 1


def area(score: np.ndarray, truth: np.ndarray) -> float:
    """Return the area under the ROC curve, from the ranks of the scores (Mann and Whitney)."""
    ranks = np.empty(len(score))
    ranks[np.argsort(score)] = np.arange(1, len(score) + 1)
    positive = truth.sum()
    return float((ranks[truth == 1].sum() - positive * (positive + 1) / 2) / (positive * (len(truth) - positive)))


def test_the_best_that_a_credit_model_can_do() -> None:
    x, y = everything(SyntheticDataset("credit", 20_000))
    best = area(Credit((), 0).risk(x), y)
    assert 0.80 < best < 0.88 and 0.1 < y.mean() < 0.4
    positive = x[:, :3] > 0
    assert positive.all() and set(np.unique(x[:, 7])) == {0, 1} and len(np.unique(x[:, 5])) > 4
    features = np.column_stack([x, np.log(x[:, :3])]).astype(float)
    assert best - 0.03 < area(fit(features, y), y[10_000:]) < best + 0.01


def test_cells_are_brighter_than_their_background() -> None:
    x, y = everything(SyntheticDataset("segmentation", 50))
    assert 0.05 < y.mean() < 0.4 and y.reshape(50, -1).any(axis=1).all()
    smooth = sum(np.roll(x.astype(float), (i, j), (1, 2)) for i in (-1, 0, 1) for j in (-1, 0, 1)) / 9
    found = smooth > 110 + 0 * y
    overlap = (found & (y == 1)).sum() / (found | (y == 1)).sum()
    assert 0.4 < overlap < 0.95  # a threshold finds much of them, and leaves something to learn


def test_ratings_have_a_low_rank() -> None:
    x, y = everything(SyntheticDataset("ratings", 30_000, label_kind="value"))
    assert set(np.unique(y)) <= set(np.arange(1, 11) / 2) and y.std() > 0.7
    assert x.min() == 0 and x.max(axis=0).tolist() == [199, 99]
    train, test = np.arange(30_000) < 25_000, np.arange(30_000) >= 25_000
    users, items = (np.random.default_rng(0).standard_normal((count, 5)) * 0.3 for count in (200, 100))
    for _ in range(10):  # alternating least squares, with a constant for each user
        users[:, 4] = 1
        for vectors, other, column in ((items, users, 1), (users, items, 0)):
            for number in range(len(vectors)):
                rows = train & (x[:, column] == number)
                known = other[x[rows, 1 - column]]
                vectors[number] = np.linalg.solve(known.T @ known + np.eye(5), known.T @ (y[rows] - y.mean()))
    error = (users[x[test, 0]] * items[x[test, 1]]).sum(1) + y.mean() - y[test]
    assert np.sqrt(np.mean(error**2)) < 0.6 * y[test].std()


def test_more_samples_than_memory_holds() -> None:
    config = DataConfig(format="synthetic", synthetic="segmentation", num_samples=10**5, synthetic_shape=(1024, 1024))
    train = open_datasets(config, start_mpi()).train  # 100 GB of images
    assert train.num_samples == 80_000 and train.read_raw(np.array([79_999])).shape == (1, 1024, 1024)
