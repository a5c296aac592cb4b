"""Training for accuracy and diversity at once (Deutsch, equation 1; the settings say how they are weighed)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ...data import Digits
from ...models import FilterHypernetwork
from ...nn import TargetNet
from ...ops import nn_entropy
from .. import checkpoint
from ..training import generator_at, stop_between_steps
from .config import Config

NAME = "demo"


def build(config: Config) -> tuple[TargetNet, FilterHypernetwork]:
    """The target network, 64-hidden-10 with tanh (no scaling symmetry to fix), and its hypernetwork."""
    torch.manual_seed(config.seed)
    net = TargetNet(nn.Sequential(nn.Linear(64, config.hidden), nn.Tanh(), nn.Linear(config.hidden, 10)))
    hypernetwork = FilterHypernetwork(
        net,
        config.noise_size,
        config.extractor_hidden,
        config.code_size,
        [config.generator_hidden] * 2,
    )
    return net, hypernetwork


def train(
    config: Config,
    data: Digits,
    path: Path,
    progress: Callable[[int, dict[str, float]], None],
) -> tuple[TargetNet, FilterHypernetwork, int]:
    """Trains to config.steps, from the checkpoint at `path` where there is one of the same config.

    Calls progress(step, metrics). Returns the networks in eval mode and the step reached; on Ctrl-C it stops
    early. Either way the checkpoint at `path` is then usable.
    """
    net, hypernetwork = build(config)
    optimizer = torch.optim.Adam(hypernetwork.parameters(), config.learning_rate)
    step = checkpoint.resume(path, NAME, config, hypernetwork, optimizer) if path.exists() else 0
    with stop_between_steps() as asked_to_stop:
        while step < config.steps and not asked_to_stop():
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * min(1.0, 4 * (1 - step / config.steps))
            metrics = _step(config, net, hypernetwork, optimizer, data, generator_at(config.seed, step))
            step += 1
            progress(step, metrics)
    checkpoint.save_training(path, NAME, config, step, hypernetwork, optimizer)
    return net, hypernetwork.eval(), step


def _step(config, net, hypernetwork, optimizer, data: Digits, generator: torch.Generator) -> dict[str, float]:
    """One step on config.networks fresh networks, each with its own images."""
    z = torch.rand(config.networks, config.noise_size, generator=generator) * 2 - 1
    picks = torch.randint(len(data.train_labels), (config.networks, config.images), generator=generator)
    theta = hypernetwork(z)
    logits = net(data.train_images[picks], theta)
    cross_entropy = F.cross_entropy(logits.flatten(0, 1), data.train_labels[picks].flatten())
    entropy = nn_entropy(theta)
    energy = 0.5 * config.precision * theta.square().sum(1).mean()
    optimizer.zero_grad()
    (config.accuracy_weight * cross_entropy + energy - entropy).backward()
    optimizer.step()
    accuracy = (logits.argmax(-1) == data.train_labels[picks]).float().mean()
    return {"cross-entropy": cross_entropy.item(), "entropy": entropy.item(), "batch accuracy": accuracy.item()}
