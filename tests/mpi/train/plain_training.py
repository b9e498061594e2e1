"""Training of an MLP in plain float64 NumPy on one process: what every grid is held to.

Nothing of lepton_mpi's layers, losses, optimizers, or schedules is used; only the initial weights and the batches are its.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lepton_mpi.config.schema import Config, OptimizerConfig
from lepton_mpi.data.dataset import Dataset
from lepton_mpi.data.loader import Loader
from lepton_mpi.data.normalisation import measure_normalisation
from lepton_mpi.data.sampler import Sampler
from lepton_mpi.models.family import DataShape
from lepton_mpi.nn.parameter import cut_parameter, initial_values
from lepton_mpi.runtime.mpi import MPI
from lepton_mpi.train.network import declare_model

Weights = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class PlainResult:
    """Losses, accuracies and unclipped gradient norms of each step, and the weights at the end."""

    losses: list[float]
    accuracies: list[float]
    grad_norms: list[float]
    weights: Weights


def initial_weights(config: Config, dataset: Dataset) -> Weights:
    model = declare_model(config.model, DataShape(dataset.input_shape, dataset.num_classes))
    blocks = [cut_parameter(spec, 1, 0) for spec in model.parameters]
    return {block.name: initial_values(block, config.train.seed).astype(np.float64) for block in blocks}


def forward(weights: Weights, x: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Return the input of every layer, and the logits."""
    num_layers = len(weights) // 2
    layers = [x]
    for i in range(num_layers):
        z = layers[-1] @ weights[f"layers.{i}.weight"].T + weights[f"layers.{i}.bias"]
        layers.append(z if i == num_layers - 1 else np.where(z > 0, z, 0))
    return layers


def probabilities(weights: Weights, x: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(forward(weights, x)[-1])
    return powers / powers.sum(axis=1, keepdims=True)


def gradients(weights: Weights, x: NDArray[np.float64], labels: NDArray[np.int64]) -> tuple[float, float, Weights]:
    """Return mean loss, accuracy, and the gradient of the mean loss."""
    layers, chosen = forward(weights, x), (np.arange(len(labels)), labels)
    shares = probabilities(weights, x)
    dz = shares.copy()
    dz[chosen] -= 1
    dz /= len(labels)
    grads: Weights = {}
    for i in reversed(range(len(layers) - 1)):
        grads[f"layers.{i}.weight"] = dz.T @ layers[i]
        grads[f"layers.{i}.bias"] = dz.sum(axis=0)
        dz = (dz @ weights[f"layers.{i}.weight"]) * (layers[i] > 0)
    return -float(np.log(shares[chosen]).mean()), float((shares.argmax(axis=1) == labels).mean()), grads


def plain_lr(config: OptimizerConfig, step: int) -> float:
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = min((step - config.warmup_steps) / config.decay_steps, 1.0)
    return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * progress)) / 2


def train_plainly(config: Config, dataset: Dataset, num_steps: int) -> PlainResult:
    """Train as a run of this configuration should, in one process."""
    o, weights = config.optimizer, initial_weights(config, dataset)
    first = {name: np.zeros_like(w) for name, w in weights.items()}
    second = {name: np.zeros_like(w) for name, w in weights.items()}
    loader = Loader(
        dataset,
        Sampler(dataset.num_samples, config.train.seed),
        measure_normalisation(dataset, config.data.normalise, MPI.COMM_SELF),
        global_batch=config.train.global_batch,
        seed=config.train.seed,
    )
    frozen_after = max(1, round(o.freeze_share * num_steps)) if o.name == "onebit_adam" else num_steps
    result, place = PlainResult([], [], [], weights), (0, 0)
    for step in range(num_steps):
        batch = loader.batch(*place)
        place = batch.following
        loss, accuracy, grads = gradients(weights, batch.inputs[0].reshape(batch.num_global, -1).astype(float), batch.labels[0])
        norm = math.sqrt(sum(float(np.square(g).sum()) for g in grads.values()))
        scale = min(1.0, o.clip_norm / norm) if o.clip_norm else 1.0
        lr = plain_lr(o, step)
        for name, w in weights.items():
            g, decay = grads[name] * scale, o.weight_decay if name.endswith("weight") else 0.0
            if o.name == "sgd":
                first[name] = o.momentum * first[name] + g + decay * w
                w -= lr * first[name]
                continue
            first[name] = o.beta1 * first[name] + (1 - o.beta1) * g
            counted = min(step + 1, frozen_after)
            if counted == step + 1:
                second[name] = o.beta2 * second[name] + (1 - o.beta2) * g**2
            m, v = first[name] / (1 - o.beta1 ** (step + 1)), second[name] / (1 - o.beta2**counted)
            step_direction = m / (np.sqrt(v) + o.epsilon)
            if counted < step + 1:  # a frozen variance of 0 says nothing of the gradient that came later
                step_direction[v == 0] = 0
            direction = step_direction + decay * w
            norms = float(np.linalg.norm(w)), float(np.linalg.norm(direction))
            w -= lr * direction * (norms[0] / norms[1] if o.name == "lamb" and name.endswith("weight") and all(norms) else 1.0)
        result.losses.append(loss)
        result.accuracies.append(accuracy)
        result.grad_norms.append(norm)
    return result
