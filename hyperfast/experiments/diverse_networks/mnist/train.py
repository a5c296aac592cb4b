"""Training for accuracy and diversity at once (Deutsch, equation 1, section 4.2 and appendix A.7)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....data import Labelled, load_mnist
from ....models import FilterHypernetwork, deutsch_hypernetwork, targets
from ....nn import TargetNet
from ....reference.gauge import fix_gauge
from ....reference.nn_entropy import nn_entropy
from ... import checkpoint
from ...experiment import Trained
from ...training import ProgressBar, Table, generator_at, stop_between_steps
from .config import MAY_DIFFER, NAME, Config

METRICS = ("loss", "cross_entropy", "entropy", "batch_accuracy", "learning_rate")
VALIDATION = ("loss", "cross_entropy", "entropy", "accuracy")
CHECKPOINT = "checkpoint.safetensors"
STATISTICS_MOMENTUM = 0.02  # 1 - decay
# Networks and images evaluated at once: they bound what lies between two stages.
NETWORKS_AT_ONCE, IMAGES_AT_ONCE = 16, 512


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
    return nn_entropy(theta, config.entropy_dim, order, config.entropy_epsilon)


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
    labels = data.labels[picks]
    theta = fix_gauge(hypernetwork(z.to(device)), net.plan)
    logits = net(data.images[picks], theta)
    cross_entropy = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    diversity = entropy(theta, config)
    loss = config.accuracy_weight * cross_entropy - diversity
    rate = config.learning_rate_at(step)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
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
    """Trains to config.steps, writes checkpoint, metrics.csv and validation.csv into `out`; the step reached.

    Ctrl-C stops after the step that is under way; the checkpoint is then usable, as one killed is from its last.
    Raises ValueError where `out` has a checkpoint and resume is False, where resume is True and it has none or
    one of another config, and where the loss is not finite any more.
    """
    path = out / CHECKPOINT
    if path.exists() and not resume:
        raise ValueError(f"{path} exists: go on from it with --resume, or write elsewhere with --out DIR")
    net, hypernetwork, optimizer = build(config, device)
    step = checkpoint.resume(path, NAME, config, hypernetwork, optimizer, MAY_DIFFER) if resume else 0
    metrics, validations = (
        Table(out / f"{name}.csv", columns, step)
        for name, columns in (("metrics", METRICS), ("validation", VALIDATION))
    )
    training, validation = training.to(device), validation[: config.validation_images].to(device)
    shows = "CE {cross_entropy:.3f}, H {entropy:.0f}, {batch_accuracy:.1%} right"
    saved = step
    with ProgressBar("training", config.steps, step, shows) as bar, stop_between_steps() as asked_to_stop:
        while step < config.steps and not asked_to_stop():
            measured = train_step(config, net, hypernetwork, optimizer, training, step)
            step += 1
            last = step == config.steps
            if last or step % config.log_every == 0:
                row = {name: float(value) for name, value in measured.items()}
                _check_finite(row["loss"], step, path, saved)
                metrics.add(step, row)
                bar.update(step, **row)
            if last or step % config.validate_every == 0:
                row = validate(config, net, hypernetwork, validation)
                validations.add(step, row)
                bar.print(
                    f"step {step}: validation loss {row['loss']:.1f}, cross-entropy {row['cross_entropy']:.3f}, "
                    f"entropy {row['entropy']:.0f}, mean accuracy of {config.validation_networks} networks {row['accuracy']:.2%}"
                )
            if step % config.checkpoint_every == 0 and not last:
                _check_finite(float(measured["loss"]), step, path, saved)
                checkpoint.save_training(path, NAME, config, step, hypernetwork, optimizer)
                saved = step
            after_step(step)
        checkpoint.save_training(path, NAME, config, step, hypernetwork, optimizer)
    return step


def _check_finite(loss: float, step: int, path: Path, saved: int) -> None:
    if not abs(loss) < float("inf"):
        kept = f"{path} has step {saved}" if saved else "there is no checkpoint yet"
        raise ValueError(f"the loss is {loss} at step {step}; {kept}. A smaller --config.learning_rate may help")


@torch.no_grad()
def validate(config: Config, net: TargetNet, hypernetwork: FilterHypernetwork, data: Labelled) -> dict[str, float]:
    """The loss and its parts on always the same networks and all of `data`, with batch norm's running statistics."""
    hypernetwork.eval()
    theta = gauged_sampler(net, hypernetwork, config.seed)(torch.arange(config.validation_networks))
    hypernetwork.train()
    total, correct = 0.0, 0
    for some in theta.split(NETWORKS_AT_ONCE):
        logits = outputs(net, some, data.images)
        labels = data.labels.expand(len(some), -1)
        total += F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").item()
        correct += int((logits.argmax(-1) == labels).sum())
    count = len(theta) * len(data)
    cross_entropy, diversity = total / count, entropy(theta, config).item()
    loss = config.accuracy_weight * cross_entropy - diversity
    return dict(zip(VALIDATION, (loss, cross_entropy, diversity, correct / count), strict=True))


def outputs(net: TargetNet, theta: Tensor, images: Tensor) -> Tensor:
    """Logits [m,N,10] of the networks theta [m,P] on shared images [N,1,28,28]."""
    return torch.cat([net(some, theta) for some in images.split(IMAGES_AT_ONCE)], 1)


def gauged_sampler(net: TargetNet, hypernetwork: FilterHypernetwork, seed: int) -> Callable[[Tensor], Tensor]:
    """indices [m] -> theta [m,P], gauged as in training."""
    sampler = hypernetwork.sampler(seed)
    return lambda indices: fix_gauge(sampler(indices), net.plan)


def load(path: Path, device: torch.device, seed: int) -> Trained:
    """The networks' generator of a checkpoint, in eval mode."""
    state, about = checkpoint.load_training(path, NAME)
    net, hypernetwork, _ = build(load_config(path), device)
    checkpoint.restore(hypernetwork, None, state)
    hypernetwork.eval().requires_grad_(False)
    return Trained(net, gauged_sampler(net, hypernetwork, seed), about["step"])


def load_config(path: Path) -> Config:
    """The config of a checkpoint."""
    return checkpoint.config_from(Config, checkpoint.load_training(path, NAME)[1]["config"], path)


def run(config: Config, out: Path, data_root: Path | None, device: torch.device, resume: bool) -> None:
    """`hyperfast train diverse_networks/mnist`."""
    training, validation, _ = load_mnist(data_root).split(config.held_out)
    step = train(config, training, validation, out, device, resume)
    path = out / CHECKPOINT
    if step < config.steps:
        print(f"stopped after {step} of {config.steps} steps; {path} is usable: --resume goes on from it")
    else:
        print(f"{step} steps; now: hyperfast evaluate {NAME} --checkpoint {path}")
