"""Combinations that cannot work, each beside one that can."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lepton_mpi.config.checks import check_config
from lepton_mpi.config.keys import list_keys
from lepton_mpi.config.schema import Config
from lepton_mpi.errors import ConfigError


def configure(**overrides: object) -> Config:
    """Return the default configuration with `section__key=value` changed."""
    config = Config()
    for name, value in overrides.items():
        section, _, key = name.partition("__")
        config = replace(config, **{section: replace(getattr(config, section), **{key: value})})
    return config


IDX = {"data__format": "idx", "data__path": "x", "data__labels_path": "y"}
NPZ = {"data__format": "npz", "data__path": "x"}
RANKING = {"data__format": "npy", "data__path": "x", "model__task": "ranking"}

STREAM = {"data__format": "stream", "data__path": "x", "data__normalise": "none", "train__steps": 5}


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        IDX,
        IDX | {"data__format": "npy"},
        IDX | {"data__test_path": "u", "data__test_labels_path": "v"},
        NPZ,
        NPZ | {"data__format": "hdf5", "data__test_path": "u"},
        {"data__format": "csv", "data__path": "x"},
        {"data__format": "text", "data__path": "x", "data__test_path": "y", "data__num_classes": 256},
        {"data__format": "tokens", "data__path": "x", "data__num_classes": 50257},
        RANKING,
        RANKING | {"data__test_path": "u"},
        RANKING | {"model__task": "masked_language_model"},
        RANKING | {"model__task": "auto", "model__family": "recommender"},
        RANKING | {"data__labels_path": "y", "data__test_path": "u", "data__test_labels_path": "v"},
        STREAM | {"data__max_shift": 0},
        {"data__num_classes": 2},
        {"run__name": "a-b", "run__dir": "somewhere/a-b"},
        {"run__dir": "/tmp/x"},
        {"optimizer__lr": 0.0},
        {"optimizer__lr": 0.1, "optimizer__min_lr": 0.1},
        {"optimizer__warmup_steps": 5, "train__steps": 5},
        {"optimizer__warmup_steps": 5, "train__steps": 0},
        {"optimizer__name": "sgd", "optimizer__beta1": 1.0, "optimizer__epsilon": 0.0},
        {"optimizer__momentum": 1.0},
        {"grid__data": 4, "train__micro_batches": 2, "train__global_batch": 8},
    ],
)
def test_possible_combinations_pass(overrides: dict[str, object]) -> None:
    check_config(configure(**overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data__path": "x"}, r"data\.path: data\.format digits .* reads no file, got 'x'"),
        ({"data__labels_path": "x"}, r"data\.labels_path: data\.format digits"),
        ({"data__test_path": "x"}, r"data\.test_path: data\.format digits"),
        ({"data__test_labels_path": "x"}, r"data\.test_labels_path: data\.format digits"),
        (STREAM | {"train__steps": 0}, r"train\.steps: a stream has no epochs"),
        (STREAM | {"data__normalise": "global"}, r"data\.normalise: .* got 'global' with data\.format stream"),
        *(
            (STREAM | {f"data__{name}": value}, rf"data\.{name}: it does not go with data\.format stream")
            for name, value in (
                ("augment", ("flip",)),
                ("max_shift", 1),
                ("first_n", 5),
                ("validation_fraction", 0.1),
                ("stage_dir", "y"),
            )
        ),
        (IDX | {"data__labels_path": ""}, r"data\.labels_path: data\.format idx keeps labels in a file of their own"),
        (IDX | {"data__format": "npy", "data__labels_path": ""}, r"data\.labels_path: data\.format npy"),
        (IDX | {"data__test_path": "u"}, r"data\.test_path and data\.test_labels_path: .* got 'u' and ''"),
        (IDX | {"data__test_labels_path": "v"}, r"data\.test_path and data\.test_labels_path: .* got '' and 'v'"),
        (NPZ | {"data__labels_path": "y"}, r"data\.labels_path: data\.format npz holds inputs and labels in one file"),
        (NPZ | {"data__test_labels_path": "y"}, r"data\.test_labels_path: data\.format npz"),
        (NPZ | {"data__inputs_name": ""}, r"data\.inputs_name: data\.format npz needs the name"),
        (NPZ | {"data__labels_name": ""}, r"data\.labels_name: data\.format npz needs the name"),
        (NPZ | {"data__labels_name": "x"}, r"data\.inputs_name and data\.labels_name: .* got 'x' for both"),
        ({"data__format": "csv", "data__path": "x", "data__label_column": ""}, r"data\.label_column"),
        ({"data__format": "parquet", "data__path": "x", "data__label_column": ""}, r"data\.label_column: data\.format parquet"),
        ({"data__image_size": (32,)}, r"data\.image_size: expected height and width, got \[32\]"),
        (
            {"data__format": "synthetic", "data__path": "x"},
            r"data\.path: data\.format synthetic makes its samples and reads no file",
        ),
        ({"data__num_classes": 1}, r"data\.num_classes: expected at least 2"),
        ({"data__format": "pystdlib", "data__path": "x"}, r"data\.path: data\.format pystdlib .* reads no file, got 'x'"),
        ({"data__format": "text", "data__path": "x", "data__labels_path": "y"}, r"data\.labels_path: data\.format text"),
        ({"data__format": "tokens", "data__path": "x", "data__test_labels_path": "y"}, r"data\.test_labels_path: .* tokens"),
        (
            {"data__format": "pystdlib", "data__num_classes": 255},
            r"data\.num_classes: data\.format pystdlib has 256 tokens, got 255",
        ),
        (RANKING | {"data__test_labels_path": "v"}, r"data\.test_labels_path: expected none"),
        (RANKING | {"model__task": "regression"}, r"data\.labels_path: data\.format npy keeps labels"),
        ({"run__name": "a/b"}, r"run\.name: expected the name of one folder, got 'a/b'"),
        ({"run__name": ".."}, r"run\.name"),
        ({"run__name": "a", "run__dir": "b"}, r"run\.name 'a' and run\.dir 'b'"),
        ({"model__hidden_sizes": ()}, r"model\.hidden_sizes: .* got an empty list"),
        ({"optimizer__min_lr": 0.5}, r"optimizer\.min_lr: expected at most optimizer\.lr = 0\.001, got 0\.5"),
        ({"optimizer__warmup_steps": 6, "train__steps": 5}, r"optimizer\.warmup_steps: expected at most train\.steps = 5, got 6"),
        ({"optimizer__beta1": 1.0}, r"optimizer\.beta1: expected a number below 1"),
        ({"optimizer__beta2": 1.0}, r"optimizer\.beta2"),
        ({"optimizer__name": "sgd", "optimizer__momentum": 1.0}, r"optimizer\.momentum"),
        ({"optimizer__epsilon": 0.0}, r"optimizer\.epsilon"),
        ({"optimizer__name": "lamb", "optimizer__beta2": 1.0}, r"optimizer\.beta2"),
        ({"optimizer__name": "onebit_adam", "optimizer__epsilon": 0.0}, r"optimizer\.epsilon"),
        ({"optimizer__name": "onebit_adam", "optimizer__clip_norm": 1.0}, r"optimizer\.clip_norm: expected 0\.0 with onebit_adam"),
        ({"optimizer__name": "onebit_adam", "optimizer__shard": "data"}, r"optimizer\.shard: expected 'node' with onebit_adam"),
        ({"optimizer__name": "onebit_adam", "train__reproducible": True}, r"train\.reproducible: onebit_adam"),
        (
            {"optimizer__momentum_correction": True},
            r"optimizer\.momentum_correction: expected optimizer\.name sgd and optimizer\.momentum above 0, got adamw and 0\.9",
        ),
        (
            {"optimizer__momentum_correction": True, "optimizer__name": "sgd", "optimizer__momentum": 0.0},
            r"optimizer\.momentum_correction: .* got sgd and 0\.0",
        ),
        (
            {"optimizer__momentum_correction": True, "optimizer__name": "sgd", "train__reproducible": True},
            r"train\.reproducible: optimizer\.momentum_correction",
        ),
        ({"grid__data": 4, "train__global_batch": 3}, r"train\.global_batch: expected at least 4 samples"),
        ({"grid__data": 4, "train__micro_batches": 2, "train__global_batch": 7}, r"train\.global_batch: expected at least 8"),
        ({"train__micro_batches": 129}, r"train\.global_batch: expected at least 129"),
    ],
)
def test_impossible_combinations_name_their_keys(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_config(configure(**overrides))


@pytest.mark.parametrize("data_format", list_keys()["data"]["format"].choices)
def test_every_format_but_the_built_in_ones_needs_a_path(data_format: str) -> None:
    config = configure(data__format=data_format)
    if data_format in ("digits", "pystdlib", "synthetic"):
        check_config(config)
    else:
        with pytest.raises(ConfigError, match=rf"data\.path: data\.format {data_format} reads a file"):
            check_config(config)
