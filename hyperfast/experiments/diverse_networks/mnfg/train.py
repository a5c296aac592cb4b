"""Variational training of multiplicative normalizing flows over the same networks (Louizos & Welling 2017)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ....data import Labelled, load_mnist
from ....models import MultiplicativeFlows, targets
from ....nn import TargetNet
from ....ops import fix_gauge, nn_entropy
from ... import checkpoint, variational
from ...experiment import Trained
from ...loop import Training, report
from ...loop import run as run_loop
from ...networks import mean_scores
from ...training import generator_at
from ...variational import variational_step
from .config import MAY_DIFFER, NAME, Config

METRICS = (*variational.METRICS, "learning_rate")
VALIDATION = ("loss", "cross_entropy", "kl", "entropy", "accuracy")
NOISE_DIMENSION = 300  # d of the entropy that validation tells: that of the hypernetwork's, to be compared with it


def build(config: Config, device: torch.device) -> tuple[TargetNet, MultiplicativeFlows, torch.optim.Adam]:
    """Target network, posterior initialised by config.seed (the same on every device), optimizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        net = TargetNet(targets.deutsch_mnist())
        flows = MultiplicativeFlows(net, config.q_hidden, config.r_hidden, config.q_steps, config.r_steps).to(device)
    return net, flows, torch.optim.Adam(flows.parameters(), config.learning_rate, fused=True)


def train_step(
    config: Config,
    net: TargetNet,
    flows: MultiplicativeFlows,
    optimizer: torch.optim.Optimizer,
    data: Labelled,
    step: int,
) -> dict[str, Tensor | float]:
    """One step on config.images images, shared out among config.networks networks; metrics as scalar tensors."""
    draws, device = generator_at(config.seed, step), data.images.device
    noise = torch.randn(config.networks, flows.noise_size, generator=draws).to(device)
    picks = torch.randint(len(data), (config.networks, config.images // config.networks), generator=draws).to(device)
    found = variational_step(
        net, flows, optimizer, noise, data.images[picks], data.labels[picks], len(data), config.largest_deviation, draws
    )
    return {**found, "learning_rate": config.learning_rate}


@torch.no_grad()
def validate(
    config: Config, net: TargetNet, flows: MultiplicativeFlows, data: Labelled, images: int
) -> dict[str, float]:
    """Of always the same networks on all of `data`; entropy of their gauged weights. images: those of training."""
    noise = flows.noise(config.seed)(torch.arange(config.validation_networks)).to(data.images.device)
    theta, divergence = flows.draw(noise, flows.masks(len(noise), generator_at(config.seed, 0)))
    cross_entropy, accuracy = mean_scores(net, theta, data)
    kl, entropy = divergence.mean().item(), nn_entropy(fix_gauge(theta, net), NOISE_DIMENSION).item()
    return dict(zip(VALIDATION, (cross_entropy + kl / images, cross_entropy, kl, entropy, accuracy), strict=True))


def train(
    config: Config,
    training: Labelled,
    validation: Labelled,
    out: Path,
    device: torch.device,
    resume: bool = False,
    after_step: Callable[[int], None] = lambda step: None,
) -> int:
    """Trains to config.epochs, see loop.run; the step reached."""
    net, flows, optimizer = build(config, device)
    training, validation = training.to(device), validation[: config.validation_images].to(device)
    return run_loop(
        Training(
            NAME, config, MAY_DIFFER, config.steps(len(training)), flows, optimizer, shares="networks",
            step=lambda step: train_step(config, net, flows, optimizer, training, step),
            validate=lambda: validate(config, net, flows, validation, len(training)),
            metrics=METRICS, validation=VALIDATION,
            shows="CE {cross_entropy:.3f}, KL {kl:.0f}, {batch_accuracy:.1%} right",
            tells="validation loss {loss:.3f}, cross-entropy {cross_entropy:.3f}, KL {kl:.0f}, "
            f"mean accuracy of {config.validation_networks} networks {{accuracy:.2%}}",
        ),
        out, resume, after_step,
    )  # fmt: skip


def load(path: Path, device: torch.device, seed: int) -> Trained:
    """The networks' generator of a checkpoint; its networks are gauged as the hypernetwork's are."""
    state, config, step = checkpoint.load_with_config(Config, path, NAME)
    net, flows, _ = build(config, device)
    checkpoint.restore(flows, None, state)
    flows.requires_grad_(False)
    noise = flows.noise(seed)
    return Trained.of_noise(net, lambda indices: noise(indices).to(device), lambda z: fix_gauge(flows(z), net), step)


def load_config(path: Path) -> Config:
    """The config of a checkpoint."""
    return checkpoint.load_config(Config, path, NAME)


def run(config: Config, out: Path, data_root: Path | None, device: torch.device, resume: bool) -> None:
    """`hyperfast train diverse_networks/mnfg`."""
    training, validation, _ = load_mnist(data_root).split(config.held_out)
    step = train(config, training, validation, out, device, resume)
    report(NAME, step, config.steps(len(training)), out)
