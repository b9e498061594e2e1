"""Masks and negative items: their shares, their independence of rank and batch, and the loader that applies them."""

from __future__ import annotations

import numpy as np
import pytest

from lepton_mpi.config.augmentation import AugmentationSettings
from lepton_mpi.data.augmentation import Augmentation
from lepton_mpi.data.dataset import ArrayDataset
from lepton_mpi.data.formats.tokens import TokenWindows
from lepton_mpi.data.loader import EVALUATION, BatchCut, Loader, prepared_shape
from lepton_mpi.data.masking import NOT_ASKED, Masking
from lepton_mpi.data.negatives import NegativeItems
from lepton_mpi.data.normalisation import Normalisation
from lepton_mpi.data.sampler import Sampler, SequentialSampler
from lepton_mpi.errors import ConfigError, DataError

IDENTITY = Normalisation.identity((4,))
NOTHING = np.empty((0, 0), np.int64)


def mask(tokens: np.ndarray, masking: Masking, seed: int = 3, epoch: int = 1, samples: np.ndarray | None = None):
    indices = np.arange(len(tokens)) if samples is None else samples
    return masking.prepare(tokens, NOTHING, seed, epoch, indices)


def test_shares_of_masked_random_and_kept_tokens() -> None:
    tokens = np.random.default_rng(0).integers(5, 100, (2000, 101))
    masked, labels = mask(tokens, Masking(0.15, 2, 1000))
    asked = labels != NOT_ASKED
    np.testing.assert_array_equal(labels[asked], tokens[asked])
    np.testing.assert_array_equal(masked[~asked], tokens[~asked])
    count = asked.sum()
    assert abs(count / tokens.size - 0.15) < 0.003
    hidden, kept = masked[asked] == 2, masked[asked] == tokens[asked]
    assert abs(hidden.sum() / count - 0.8) < 0.01 and abs(kept.sum() / count - 0.1) < 0.01
    drawn = masked[asked][~hidden & ~kept]
    assert drawn.min() < 20 and drawn.max() > 980 and abs(drawn.mean() - 500) < 30
    assert np.abs(asked.mean(axis=0) - 0.15).max() < 0.05  # no position is preferred


def test_padding_is_never_asked_for_and_every_text_is() -> None:
    tokens = np.random.default_rng(0).integers(1, 9, (500, 7))
    for row, length in enumerate(np.arange(500) % 8):
        tokens[row, length:] = 0
    masked, labels = mask(tokens, Masking(0.05, 9, 10, 0))
    asked = labels != NOT_ASKED
    assert not asked[tokens == 0].any() and (masked[tokens == 0] == 0).all()
    np.testing.assert_array_equal(asked.any(axis=1), (tokens != 0).any(axis=1))
    assert asked.sum(axis=1).max() > 1
    assert (mask(tokens[tokens[:, -1] != 0], Masking(1.0, 9, 10, -1))[1] != NOT_ASKED).all()


@pytest.mark.parametrize("pad", [0, 3, 8])
def test_random_tokens_are_all_but_the_padding(pad: int) -> None:
    tokens = np.full((3000, 7), 5)
    drawn = mask(tokens, Masking(1.0, 9, 10, pad))[0]
    counts = np.bincount(drawn[(drawn != 9) & (drawn != 5)], minlength=10)  # neither hidden nor kept
    assert counts[pad] == 0
    others = np.delete(counts, [5, 9, pad])
    assert others.min() > 0.7 * others.max() > 0


def test_padding_cannot_hide_tokens() -> None:
    with pytest.raises(ConfigError, match=r"data\.mask_token: 4 is model\.pad_token too"):
        Masking(0.15, 4, 10, 4)


def test_masks_depend_on_seed_epoch_and_sample_alone() -> None:
    tokens = np.random.default_rng(0).integers(0, 99, (40, 3, 11))
    masking, samples = Masking(0.3, 99, 100), np.random.default_rng(1).permutation(10**10 + np.arange(40))
    whole = mask(tokens, masking, samples=samples)
    before = tokens.copy()
    for rows in (slice(0, 1), slice(1, 7), slice(7, 40), slice(3, 3)):
        for found, expected in zip(mask(tokens[rows], masking, samples=samples[rows]), whole, strict=True):
            np.testing.assert_array_equal(found, expected[rows])
    np.testing.assert_array_equal(tokens, before)
    for seed, epoch in ((3, 2), (4, 1), (3, EVALUATION)):
        assert (mask(tokens, masking, seed, epoch, samples)[1] != whole[1]).any()


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, float("nan")])
def test_impossible_rates(rate: float) -> None:
    with pytest.raises(ConfigError, match=r"data\.mask_rate"):
        Masking(rate, 1, 10)


@pytest.mark.parametrize("token", [-1, 10])
def test_impossible_mask_tokens(token: int) -> None:
    with pytest.raises(ConfigError, match=rf"data\.mask_token: .* 0 .. 9, got {token}"):
        Masking(0.15, token, 10)


def test_negative_items_are_all_others_equally_often() -> None:
    pairs = np.column_stack([np.arange(60_000), np.arange(60_000) % 6])
    rows, labels = NegativeItems(6).prepare(pairs, pairs[:, 0], 1, 2, np.arange(60_000))
    assert rows.shape == (60_000, 3) and rows.dtype == np.int64 and labels is not None
    np.testing.assert_array_equal(rows[:, :2], pairs)
    np.testing.assert_array_equal(labels, pairs[:, 0])
    counts = np.zeros((6, 6), int)
    np.add.at(counts, (rows[:, 1], rows[:, 2]), 1)
    assert (np.diag(counts) == 0).all() and np.abs(counts[~np.eye(6, dtype=bool)] - 2000).max() < 5 * np.sqrt(2000)
    some = np.array([9, 5, 59_999])
    np.testing.assert_array_equal(NegativeItems(6).prepare(pairs[some], NOTHING, 1, 2, some)[0], rows[some])
    assert NegativeItems(2).prepare(pairs[:4] % 2, NOTHING, 0, 0, np.arange(4))[0][:, 2].tolist() == [1, 0, 1, 0]
    assert NegativeItems(6).prepare(pairs[:0], NOTHING, 0, 0, some[:0])[0].shape == (0, 3)


@pytest.mark.parametrize("count", [1, 2, 4, 5, 99])
def test_candidates_follow_from_the_sample_alone(count: int) -> None:
    random, samples = np.random.default_rng(0), np.array([9, 5, 10**10, 4])
    pairs = random.integers(0, 1000, (4, 2))
    rows, _ = NegativeItems(1000, count).prepare(pairs, NOTHING, 1, EVALUATION, samples)
    assert rows.shape == (4, 2 + count) and rows.dtype == np.int64
    assert ((rows[:, 2:] >= 0) & (rows[:, 2:] < 1000) & (rows[:, 2:] != pairs[:, 1:])).all()
    assert len(np.unique(rows[:, 2:])) > 0.7 * 4 * count
    some = np.array([2, 0])
    found, _ = NegativeItems(1000, count).prepare(pairs[some], NOTHING, 1, EVALUATION, samples[some])
    np.testing.assert_array_equal(found, rows[some])
    fewer = NegativeItems(1000).prepare(pairs, NOTHING, 1, EVALUATION, samples)[0]
    np.testing.assert_array_equal(rows[:, :3], fewer)  # the first one is that of the training


@pytest.mark.parametrize("count", [3, 99])
def test_all_others_are_candidates_where_there_are_no_more(count: int) -> None:
    rows, _ = NegativeItems(4, count).prepare(np.array([[7, 0], [7, 2]]), NOTHING, 1, 0, np.arange(2))
    np.testing.assert_array_equal(rows, [[7, 0, 1, 2, 3], [7, 2, 0, 1, 3]])
    assert prepared_shape((2,), NegativeItems(4, count)) == (5,) and prepared_shape((2,), None) == (2,)


def test_impossible_negative_items() -> None:
    with pytest.raises(ConfigError, match=r"data\.ranking_candidates: .* got 0"):
        NegativeItems(5, 0)
    for count in (1, 2**31 + 1):
        with pytest.raises(ConfigError, match=rf"model\.num_items: .* got {count}"):
            NegativeItems(count)
    with pytest.raises(DataError, match=r"expected samples of two ids, .* found samples of shape \(3,\)"):
        NegativeItems(5).prepare(np.zeros((2, 3), np.int64), NOTHING, 0, 0, np.arange(2))


def windows(num_samples: int) -> TokenWindows:
    tokens = np.random.default_rng(5).integers(0, 200, 4 * num_samples + 1).astype(np.uint8)
    return TokenWindows("text", tokens, 4, 256)


def test_ids_are_not_normalised() -> None:
    images = ArrayDataset("ids", np.arange(96).reshape(6, 4, 4) + 2**30, np.linspace(0, 1, 6), 0)
    loader = Loader(
        images,
        SequentialSampler(6),
        Normalisation(np.float32(5), np.float32(3)),
        global_batch=6,
        input_kind="ids",
    )
    batch = loader.batch(0, 0)
    assert batch.inputs[0].dtype == np.int64 and batch.labels[0].dtype == np.float32
    np.testing.assert_array_equal(batch.inputs[0], np.arange(96).reshape(6, 4, 4) + 2**30)


def test_ids_are_not_augmented() -> None:
    augmentation = Augmentation(AugmentationSettings(mixup=0.2), 0, 5)
    with pytest.raises(ConfigError, match=r"data\.augment: it changes values, and the model family takes ids"):
        Loader(windows(5), SequentialSampler(5), IDENTITY, global_batch=2, input_kind="ids", augmentation=augmentation)


def test_a_preparation_takes_ids() -> None:
    with pytest.raises(ConfigError, match=r"model\.task: Masking works on ids"):
        Loader(windows(5), SequentialSampler(5), IDENTITY, global_batch=2, preparation=Masking(0.15, 255, 256))


@pytest.mark.parametrize("data_size", [2, 3, 5, 16])
@pytest.mark.parametrize("micro_batches", [1, 4])
def test_batches_of_text_are_the_same_on_every_grid(data_size: int, micro_batches: int) -> None:
    def load(index: int, size: int, order: Sampler | SequentialSampler, want_inputs: bool, want_labels: bool) -> Loader:
        return Loader(
            windows(53),
            order,
            IDENTITY,
            global_batch=20,
            cut=BatchCut(index, size, micro_batches),
            seed=9,
            want_inputs=want_inputs,
            want_labels=want_labels,
            input_kind="ids",
            preparation=Masking(0.3, 255, 256),
        )

    for order in (Sampler(53, 2), SequentialSampler(53)):
        alone = load(0, 1, order, True, True)
        first, last, middle = ([load(i, data_size, order, *want) for i in range(data_size)] for want in ((1, 0), (0, 1), (0, 0)))
        for position in (0, 20, 40):
            whole = alone.batch(3, position)
            inputs = [loader.batch(3, position) for loader in first]
            labels = [loader.batch(3, position) for loader in last]
            assert all(batch.labels == [] for batch in inputs) and all(batch.inputs == [] for batch in labels)
            assert middle[0].batch(3, position).inputs == middle[0].batch(3, position).labels == []
            for m in range(micro_batches):
                np.testing.assert_array_equal(np.concatenate([batch.inputs[m] for batch in inputs]), whole.inputs[m])
                np.testing.assert_array_equal(np.concatenate([batch.labels[m] for batch in labels]), whole.labels[m])
        repeats = all(np.array_equal(a, b) for a, b in zip(alone.batch(3, 0).labels, alone.batch(4, 0).labels, strict=True))
        assert repeats == isinstance(order, SequentialSampler)  # evaluations ask the same each time
