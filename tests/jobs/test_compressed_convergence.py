"""Training on the digits between two nodes reaches nearly the loss of fp32, with as little as one bit a value."""

from __future__ import annotations

from statistics import mean

from training_job import SMALL, Job, Trainer, grid

# Of the loss of fp32, at most; what was measured stands behind. benchmarks/convergence.py takes longer runs and three seeds.
BOUNDS = {"int4": 1.02, "sign1": 1.04, "topk": 1.04, "powersgd": 1.04}
OPTIONS = (
    *SMALL, *grid("2x1x1"), "--grid.ranks_per_node", 1, "--train.steps", 240, "--train.evaluate_every_epochs", 0,
    "--checkpoint.every_steps", 0, "--optimizer.name", "sgd", "--optimizer.lr", 0.02, "--optimizer.decay_steps", 240,
    "--reduce.topk_share", 0.05,
)  # fmt: skip


def final_loss(job: Job) -> float:
    return mean(job.losses[-24:])


def test_lossy_codecs_reach_the_loss_of_fp32(train: Trainer) -> None:
    exact = train(2, *OPTIONS)
    assert final_loss(exact) < 0.1 * exact.losses[0]
    ratios = {codec: final_loss(train(2, *OPTIONS, "--reduce.mode", codec)) / final_loss(exact) for codec in BOUNDS}
    assert all(ratios[codec] <= bound for codec, bound in BOUNDS.items()), ratios


def test_scales_of_values_are_what_lets_one_bit_do(train: Trainer) -> None:
    """Without them the loss stays clearly behind, so the bound above is one that scales are needed for."""
    exact, scaled, plain = (
        final_loss(train(2, *OPTIONS, *more))
        for more in ((), ("--reduce.mode", "sign1"), ("--reduce.mode", "sign1", "--reduce.scale_values", "false"))
    )
    assert scaled - exact < 0.6 * (plain - exact), (exact, scaled, plain)
