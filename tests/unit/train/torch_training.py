"""Training in PyTorch from the same weights and on the same batches as one of our runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from small_runs import do_steps
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch_resnet import TorchResNet

from lepton_mpi.config.schema import Config, OptimizerConfig
from lepton_mpi.data.loader import Batch
from lepton_mpi.interop.choose_map import make_name_map
from lepton_mpi.interop.weights_source import SINGLE_FILE
from lepton_mpi.train.run import Run
from lepton_mpi.train.state import TrainState
from lepton_mpi.train.step import StepMetrics


class TorchMlp(nn.Module):
    """Linear layers with ReLU between them; names as ours."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return self.layers[-1](x)


# What transformers calls our families that it has too.
TRANSFORMERS = {
    ("gpt", "language_model"): "GPT2LMHeadModel",
    ("llama", "language_model"): "LlamaForCausalLM",
    ("bert", "classification"): "BertForSequenceClassification",
    ("bert", "masked_language_model"): "BertForMaskedLM",
}


@dataclass
class TorchResult:
    """What the twin found: losses, gradient norms before clipping and learning rates of each step."""

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    lrs: list[float] = field(default_factory=list)


def export_weights(run: Run, folder: Path) -> None:
    make_name_map(run.network.model, run.config.model).export(run.network.weights.gather, folder)


def make_twin(run: Run, folder: Path) -> nn.Module:
    """Return PyTorch's model with the weights that a run has now."""
    export_weights(run, folder)
    config, data, task = run.config.model, run.network.model.data, run.network.model.task.name
    if (config.family, task) in TRANSFORMERS:
        import transformers

        return getattr(transformers, TRANSFORMERS[config.family, task]).from_pretrained(folder).train()
    if config.family == "mlp":
        twin: nn.Module = TorchMlp([int(np.prod(data.input_shape)), *config.hidden_sizes, data.num_outputs])
    else:
        twin = TorchResNet(config.depth, data.input_shape[0], config.width, data.num_classes)
    absent, unexpected = twin.load_state_dict(load_file(folder / SINGLE_FILE), strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in absent)
    return twin.train()


def make_optimizer(twin: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Return PyTorch's optimizer; norms and biases are its parameters of one dim."""
    parameters = list(twin.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.epsilon)


def make_schedule(optimizer: torch.optim.Optimizer, config: OptimizerConfig) -> Any:
    if config.schedule == "constant":
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    warmup = config.warmup_steps
    rise = LinearLR(optimizer, start_factor=1 / warmup, total_iters=warmup - 1)
    fall = CosineAnnealingLR(optimizer, T_max=config.decay_steps, eta_min=config.min_lr)
    return SequentialLR(optimizer, [rise, fall], milestones=[warmup])


def output_of(twin: nn.Module, x: Tensor, pad_token: int) -> Tensor:
    if pad_token >= 0:
        return twin(x, attention_mask=(x != pad_token).long()).logits
    output = twin(x)
    return output if isinstance(output, Tensor) else output.logits


def loss_of(output: Tensor, y: Tensor, config: Config) -> Tensor:
    """Return the mean loss of the task."""
    if config.model.task == "regression":
        return mse_loss(output, y)
    if config.model.task == "binary":
        return binary_cross_entropy_with_logits(output, y)
    weights = torch.tensor(config.train.class_weights) if config.train.class_weights else None
    return cross_entropy(output.flatten(0, -2), y.flatten(), weight=weights, label_smoothing=config.train.label_smoothing)


def train_twin(twin: nn.Module, config: Config, batches: list[Batch], step_done: Callable[[], None] = lambda: None) -> TorchResult:
    """Train PyTorch's model on the batches of a run."""
    optimizer = make_optimizer(twin, config.optimizer)
    schedule, found = make_schedule(optimizer, config.optimizer), TorchResult()
    for batch in batches:
        x, y = (torch.from_numpy(np.concatenate(parts)) for parts in (batch.inputs, batch.labels))
        loss = loss_of(output_of(twin, x, config.model.pad_token), y, config)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(twin.parameters(), config.optimizer.clip_norm or float("inf"))
        found.losses.append(loss.item())
        found.grad_norms.append(norm.item())
        found.lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
        step_done()
    return found


def batches_of(run: Run, num_steps: int, first: int = 0) -> list[Batch]:
    """Return the batches of some steps of a run."""
    loader = run.training.loader
    return [loader.batch(*loader.locate(step)) for step in range(first, first + num_steps)]


def train_ours(run: Run, num_steps: int) -> list[StepMetrics]:
    return do_steps(run, TrainState(), num_steps)[1]


def our_weights(run: Run, folder: Path) -> dict[str, NDArray[np.float32]]:
    """Return the weights that a run has now, under PyTorch's names."""
    export_weights(run, folder)
    return {name: tensor.numpy() for name, tensor in load_file(folder / SINGLE_FILE).items()}
