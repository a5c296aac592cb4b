"""HyperGAN's classifiers: training, validation, and the networks' generator of a checkpoint (sections 3 and 4.2)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...data import Labelled, Parts
from ...models import HyperGAN
from ...nn import TargetNet
from .. import checkpoint, ranks
from ..experiment import Trained
from ..loop import Training, report
from ..loop import run as run_loop
from ..networks import mean_scores
from ..training import generator_at, seeded
from . import adversarial, baselines
from .config import MAY_DIFFER, ClassifierConfig
from .task import Task, drawn

METRICS = (*adversarial.METRICS, "cross_entropy", "batch_accuracy")
VALIDATION = ("loss", "accuracy")


def build(
    task: Task, config: ClassifierConfig, device: torch.device
) -> tuple[TargetNet, HyperGAN, torch.optim.Optimizer]:
    """Target network, HyperGAN initialised by config.seed (the same on every device), optimizer."""
    net = task.net(config)
    with seeded(config.seed):
        model = HyperGAN(net, config.noise, config.code, (config.hidden, config.hidden)).to(device)
    return net, model, adversarial.optimizer_of(config, model)


def batch(task: Task, config: ClassifierConfig, data: Labelled, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """(what networks see, labels): [n,C,H,W], [n] shared by all, or with own_images [networks,n,C,H,W], [networks,n], of
    this rank's networks.
    """
    shape = (config.networks, config.images_a_network) if config.own_images else (config.images_a_network,)
    picks = torch.randint(len(data), shape, generator=draws)
    images, labels = drawn(config, data, picks, draws)
    if config.own_images:
        images, labels = ranks.own(images), ranks.own(labels)
    return task.inputs(images), labels


def train_step(
    task: Task,
    config: ClassifierConfig,
    net: TargetNet,
    model: HyperGAN,
    optimizer: torch.optim.Optimizer,
    data: Labelled,
    step: int,
) -> dict[str, Tensor | float]:
    """One adversarial_step on the mean cross-entropy of the networks; metrics as scalar tensors."""
    draws = generator_at(config.seed, step)
    x, labels = batch(task, config, data, draws)

    def loss_of(theta: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logits = net(x, theta)
        wanted = labels.expand(len(theta), -1)
        cross_entropy = F.cross_entropy(logits.flatten(0, 1), wanted.flatten())
        accuracy = (logits.detach().argmax(-1) == wanted).float().mean()
        return cross_entropy, {"cross_entropy": cross_entropy.detach(), "batch_accuracy": accuracy}

    return adversarial.adversarial_step(config, model, optimizer, draws, step, loss_of)


def train(
    task: Task,
    config: ClassifierConfig,
    parts: Parts,
    out: Path,
    device: torch.device,
    resume: bool = False,
    after_step: Callable[[int], None] = lambda step: None,
) -> tuple[int, int]:
    """Trains by config.method, see loop.run; (step reached, steps in all)."""
    training, validation = parts.training.to(device), parts.validation[: config.validation_images].to(device)
    validation = Labelled(task.inputs(validation.images), validation.labels)
    if config.method != "hypergan":
        return baselines.train(task, config, training, validation, out, device, resume, after_step)
    net, model, optimizer = build(task, config, device)
    z = model.noise(config.seed)(torch.arange(config.validation_networks)).to(device)

    def step(number: int) -> dict[str, Tensor | float]:
        if number == 0:
            adversarial.pretrain(config, model)
            ranks.same(model)
        return train_step(task, config, net, model, optimizer, training, number)

    reached = run_loop(
        Training(
            task.name, config, MAY_DIFFER, config.steps, model, optimizer, shares="networks",
            step=step, validate=lambda: validate(net, lambda: model(z), validation),
            metrics=METRICS, validation=VALIDATION,
            shows="CE {cross_entropy:.3f}, {batch_accuracy:.1%} right, codes' std {code_std:.2f}",
            tells="validation cross-entropy {loss:.4f}, "
            f"mean accuracy of {config.validation_networks} networks {{accuracy:.2%}}",
        ),
        out, resume, after_step,
    )  # fmt: skip
    return reached, config.steps


@torch.no_grad()
def validate(net: TargetNet, draw: Callable[[], Tensor], data: Labelled) -> dict[str, float]:
    """Means over the networks theta [M,P] that draw() gives, on all of `data`."""
    return dict(zip(VALIDATION, mean_scores(net, draw(), data), strict=True))


def load(task: Task, path: Path, device: torch.device, seed: int) -> Trained:
    """The networks of a checkpoint."""
    state, config, step = checkpoint.load_with_config(task.config, path, task.name)
    if config.method != "hypergan":
        return baselines.load(task, config, state, step, device, seed)
    net, model, _ = build(task, config, device)
    checkpoint.restore(model, None, state)
    model.requires_grad_(False)
    noise = model.noise(seed)
    return Trained.of_noise(net, lambda indices: noise(indices).to(device), model, step)


def load_config(task: Task, path: Path) -> Any:
    """The config of a checkpoint."""
    return checkpoint.load_config(task.config, path, task.name)


def run(
    task: Task, config: ClassifierConfig, out: Path, data_root: Path | None, device: torch.device, resume: bool
) -> None:
    """`hyperfast train hypergan/...`."""
    step, steps = train(task, config, task.read(config, data_root), out, device, resume)
    report(task.name, step, steps, out)
