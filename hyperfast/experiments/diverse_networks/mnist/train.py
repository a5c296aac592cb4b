"""Training for accuracy and diversity at once (Deutsch, equation 1, section 4.2 and appendix A.7)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....data import Labelled, load_mnist
from ....models import FilterHypernetwork, NoiseStream, deutsch_hypernetwork, targets
from ....nn import TargetNet
from ....ops import fix_gauge
from ... import checkpoint, ranks
from ...experiment import Trained
from ...loop import Training, report
from ...loop import run as run_loop
from ...networks import mean_scores
from ...training import descend_unclipped, generator_at
from .config import MAY_DIFFER, NAME, Config

METRICS = ("loss", "cross_entropy", "entropy", "batch_accuracy", "learning_rate")
VALIDATION = ("loss", "cross_entropy", "entropy", "accuracy")
STATISTICS_MOMENTUM = 0.02  # 1 - decay


def build(config: Config, device: torch.device) -> tuple[TargetNet, FilterHypernetwork, torch.optim.Adam]:
    """Target network, hypernetwork initialised by config.seed (the same on every device), optimizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        net = TargetNet(targets.deutsch_mnist())
        hypernetwork = deutsch_hypernetwork(net).to(device)
    return net, hypernetwork, torch.optim.Adam(hypernetwork.parameters(), config.learning_rate)


def entropy(theta: Tensor, config: Config) -> Tensor:
    """H = psi(N) + dim/N * sum_i log(d_i + eps) of gauged weights [N,P], nats up to a constant."""
    order = {"euclidean": 2, "l1": 1}[config.entropy_distance]
    return ranks.nn_entropy(theta, config.entropy_dim, order, config.entropy_epsilon)


def train_step(
    config: Config,
    net: TargetNet,
    hypernetwork: FilterHypernetwork,
    optimizer: torch.optim.Optimizer,
    data: Labelled,
    step: int,
) -> dict[str, Tensor | float]:
    """One step on config.networks new networks, each with its own images; metrics as scalar tensors.

    The gauged weights feed both the classifier and the entropy, and the gauge is differentiated through.
    """
    _average_statistics(hypernetwork, step)
    draws, device = generator_at(config.seed, step), data.images.device
    z = torch.rand(config.networks, hypernetwork.noise_size, generator=draws) * 2 - 1
    picks = torch.randint(len(data), (config.networks, config.images), generator=draws).to(device)
    z, picks = ranks.own(z), ranks.own(picks)
    labels = data.labels[picks]
    theta = fix_gauge(hypernetwork(z.to(device)), net)
    logits = net(data.images[picks], theta)
    cross_entropy = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    diversity = entropy(theta, config)
    loss = config.accuracy_weight * cross_entropy - diversity
    rate = config.learning_rate_at(step)
    descend_unclipped(hypernetwork, optimizer, loss, rate)
    accuracy = (logits.detach().argmax(-1) == labels).float().mean()
    return dict(zip(METRICS, (loss.detach(), cross_entropy.detach(), diversity.detach(), accuracy, rate), strict=True))


def _average_statistics(hypernetwork: FilterHypernetwork, step: int) -> None:
    """Batch norm's running statistics: the plain mean of the first 50 batches, then the paper's decay of 0.98.

    An average that starts at variance 1 is off by 0.98^step, which the true variances, some 0.003, do not hide
    for hundreds of steps: four layers in a row would shrink every weight.
    """
    for module in hypernetwork.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = max(STATISTICS_MOMENTUM, 1 / (step + 1))


def train(
    config: Config,
    training: Labelled,
    validation: Labelled,
    out: Path,
    device: torch.device,
    resume: bool = False,
    after_step: Callable[[int], None] = lambda step: None,
) -> int:
    """Trains to config.steps, see loop.run; the step reached."""
    net, hypernetwork, optimizer = build(config, device)
    training, validation = training.to(device), validation[: config.validation_images].to(device)
    return run_loop(
        Training(
            NAME, config, MAY_DIFFER, config.steps, hypernetwork, optimizer, shares="networks",
            step=lambda step: train_step(config, net, hypernetwork, optimizer, training, step),
            validate=lambda: validate(config, net, hypernetwork, validation),
            metrics=METRICS, validation=VALIDATION,
            shows="CE {cross_entropy:.3f}, H {entropy:.0f}, {batch_accuracy:.1%} right",
            tells="validation loss {loss:.1f}, cross-entropy {cross_entropy:.3f}, entropy {entropy:.0f}, "
            f"mean accuracy of {config.validation_networks} networks {{accuracy:.2%}}",
        ),
        out, resume, after_step,
    )  # fmt: skip


@torch.no_grad()
def validate(config: Config, net: TargetNet, hypernetwork: FilterHypernetwork, data: Labelled) -> dict[str, float]:
    """The loss and its parts on always the same networks and all of `data`, with batch norm's running statistics."""
    hypernetwork.eval()
    z = NoiseStream(hypernetwork.noise_size, config.seed)(torch.arange(config.validation_networks))
    theta = gauged(net, hypernetwork)(z.to(data.images.device))
    hypernetwork.train()
    cross_entropy, accuracy = mean_scores(net, theta, data)
    diversity = entropy(theta, config).item()
    loss = config.accuracy_weight * cross_entropy - diversity
    return dict(zip(VALIDATION, (loss, cross_entropy, diversity, accuracy), strict=True))


def gauged(net: TargetNet, hypernetwork: FilterHypernetwork) -> Callable[[Tensor], Tensor]:
    """noise [m,Z] -> theta [m,P], gauged as in training."""
    return lambda z: fix_gauge(hypernetwork(z), net)


def load(path: Path, device: torch.device, seed: int) -> Trained:
    """The networks' generator of a checkpoint, in eval mode."""
    state, config, step = checkpoint.load_with_config(Config, path, NAME)
    net, hypernetwork, _ = build(config, device)
    checkpoint.restore(hypernetwork, None, state)
    hypernetwork.eval().requires_grad_(False)
    noise = NoiseStream(hypernetwork.noise_size, seed)
    return Trained.of_noise(net, lambda indices: noise(indices).to(device), gauged(net, hypernetwork), step)


def load_config(path: Path) -> Config:
    """The config of a checkpoint."""
    return checkpoint.load_config(Config, path, NAME)


def run(config: Config, out: Path, data_root: Path | None, device: torch.device, resume: bool) -> None:
    """`hyperfast train diverse_networks/mnist`."""
    training, validation, _ = load_mnist(data_root).split(config.held_out)
    step = train(config, training, validation, out, device, resume)
    report(NAME, step, config.steps, out)
