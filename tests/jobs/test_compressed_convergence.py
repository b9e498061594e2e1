"""Training on the digits between two nodes reaches nearly the loss of fp32, with as little as one bit a value."""

from __future__ import annotations

from statistics import mean

from training_job import SMALL, Job, Trainer, grid

# Of the loss of fp32, at most; measured: 1.002, 1.001 and 0.981.
BOUNDS = {"int8": 1.03, "int4": 1.03, "sign1": 1.05}
OPTIONS = (
    *SMALL, *grid("2x1x1"), "--grid.ranks_per_node", 1, "--train.steps", 240, "--train.evaluate_every_epochs", 0,
    "--checkpoint.every_steps", 0, "--optimizer.name", "sgd", "--optimizer.lr", 0.02,
)  # fmt: skip


def final_loss(job: Job) -> float:
    return mean(job.losses[-24:])


def test_lossy_codecs_reach_the_loss_of_fp32(train: Trainer) -> None:
    exact = train(2, *OPTIONS)
    assert final_loss(exact) < 0.1 * exact.losses[0]
    ratios = {codec: final_loss(train(2, *OPTIONS, "--reduce.mode", codec)) / final_loss(exact) for codec in BOUNDS}
    assert all(ratios[codec] <= bound for codec, bound in BOUNDS.items()), ratios
