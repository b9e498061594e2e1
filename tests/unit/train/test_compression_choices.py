"""What training does for which codec and optimizer."""

from __future__ import annotations

import pytest

from lepton_mpi.config.schema import OptimizerConfig, ReduceConfig
from lepton_mpi.optim.registry import make_optimizer
from lepton_mpi.train.compression import late_codec, scales_values, warmup_steps


@pytest.mark.parametrize(
    ("mode", "optimizer", "scaled"),
    [
        ("exact", "sgd", False),
        ("int8", "adamw", False),
        ("int4", "sgd", False),
        ("int4", "adamw", True),
        ("int4", "lamb", True),
        ("sign1", "sgd", True),
        ("sign1", "adamw", True),
        ("sign1", "onebit_adam", False),
        ("topk", "sgd", False),
        ("powersgd", "adamw", False),
    ],
)
def test_what_is_scaled(mode: str, optimizer: str, scaled: bool) -> None:
    assert scales_values(ReduceConfig(mode=mode), optimizer) == scaled
    assert (
        scales_values(ReduceConfig(mode="auto", allow=("exact", "bf16") if mode == "topk" else ("exact", mode)), optimizer)
        == scaled
    )
    assert not scales_values(ReduceConfig(mode=mode, scale_values=False), optimizer)


@pytest.mark.parametrize(
    ("mode", "optimizer", "expected"),
    [
        ("exact", "sgd", 0),
        ("fp16", "onebit_adam", 0),  # the variance is learned from nearly exact sums anyway
        ("int8", "sgd", 0),
        ("int8", "onebit_adam", 40),
        ("int4", "sgd", 0),
        ("int4", "adamw", 20),
        ("sign1", "sgd", 20),
        ("sign1", "onebit_adam", 40),
        ("topk", "adamw", 20),
        ("powersgd", "sgd", 20),
    ],
)
def test_how_long_the_warm_up_is(mode: str, optimizer: str, expected: int) -> None:
    made = make_optimizer(OptimizerConfig(name=optimizer, freeze_share=0.2)).for_steps(200)
    assert warmup_steps(ReduceConfig(mode=mode), made, optimizer, 200) == expected
    assert warmup_steps(ReduceConfig(mode="auto", allow=("exact", mode)), made, optimizer, 200) == expected


def test_the_longer_warm_up_counts() -> None:
    made = make_optimizer(OptimizerConfig(name="onebit_adam", freeze_share=0.2)).for_steps(200)
    assert warmup_steps(ReduceConfig(mode="topk", warmup_share=0.5), made, "onebit_adam", 200) == 100
    assert warmup_steps(ReduceConfig(mode="topk", warmup_share=0.0), make_optimizer(OptimizerConfig(name="sgd")), "sgd", 200) == 0


def test_a_run_too_short_for_its_codec_is_told() -> None:
    reduce = ReduceConfig(mode="topk")
    assert late_codec(reduce, 36, 360) == ""
    assert late_codec(reduce, 0, 0) == ""  # nothing to do, and nothing to wait for
    for num_steps in (5, 36):
        message = late_codec(reduce, 36, num_steps)
        assert "reduce.mode = topk" in message
        assert f"36 steps, but the run has {num_steps}" in message
