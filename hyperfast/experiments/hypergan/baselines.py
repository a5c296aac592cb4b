"""What HyperGAN is compared with: networks trained one by one, dropout, and multiplicative normalizing flows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import ensemble
from ...data import Labelled
from ...models import MultiplicativeFlows, NoiseStream
from ...nn import TargetNet
from .. import checkpoint, ranks, variational
from ..experiment import Trained
from ..loop import Training
from ..loop import run as run_loop
from ..networks import mean_scores
from ..training import generator_at, seeded
from .config import MAY_DIFFER, ClassifierConfig
from .task import Task, drawn

VALIDATION = ("loss", "accuracy")


def train(
    task: Task,
    config: ClassifierConfig,
    training: Labelled,
    validation: Labelled,
    out: Path,
    device: torch.device,
    resume: bool,
    after_step: Callable[[int], None],
) -> tuple[int, int]:
    """Trains by config.method, see loop.run; (step reached, steps in all). validation: as networks see it."""
    kind = _train_flows if config.method == "mnfg" else _train_networks
    job = kind(task, config, training, validation, device)
    return run_loop(job, out, resume, after_step), job.steps


def load(
    task: Task, config: ClassifierConfig, state: Mapping[str, Tensor], step: int, device: torch.device, seed: int
) -> Trained:
    """The networks of a checkpoint's state at its step. Those trained one by one are as many as were trained; others any number.

    With dropout, a network is a mask over what the linear layers read: the same for every image, so that it is a
    function, and lies on its weights.
    """
    net = task.net(config)
    if config.method == "mnfg":
        flows = build_flows(task, config, device)[1]
        checkpoint.restore(flows, None, state)
        flows.requires_grad_(False)
        noise = flows.noise(seed)
        return Trained.of_noise(net, lambda indices: noise(indices).to(device), flows, step)
    networks = Networks(_members(config), net.num_weights)
    checkpoint.restore(networks, None, state)
    theta = networks.theta.detach().to(device)
    if config.method == "dropout":
        masks = NoiseStream(thinned_inputs(net), seed)
        return Trained.of_noise(
            net, lambda indices: masks(indices).to(device),
            lambda z: thinned(net, theta[0], z, config.baseline.dropout), step,
        )  # fmt: skip
    done = min(len(theta), step * config.baseline.members_at_once)
    return Trained(net, lambda indices: theta[indices.to(device)], step, members=done)


# ---- networks trained one by one --------------------------------------------------------------------


class Networks(nn.Module):
    """Trained networks, theta [members,P]; those not yet trained are 0."""

    def __init__(self, members: int, weights: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(members, weights))


def _members(config: ClassifierConfig) -> int:
    return config.baseline.members if config.method == "ensemble" else 1


def _train_networks(
    task: Task, config: ClassifierConfig, training: Labelled, validation: Labelled, device: torch.device
) -> Training:
    """A step trains a group of networks from beginning to end."""
    settings, net = config.baseline, task.net(config)
    template = task.template(dropout=settings.dropout) if config.method == "dropout" else task.template()
    networks = Networks(_members(config), net.num_weights).to(device)
    groups = networks.theta.detach().split(settings.members_at_once)
    shared = config.method == "ensemble"  # dropout is one network's, and has nothing to share
    if shared and len(groups[-1]) < ranks.count():
        raise ValueError(
            f"config.baseline.members, {settings.members}, leaves {len(groups[-1])} of the last "
            f"{settings.members_at_once} for {ranks.count()} ranks"
        )

    def step(number: int) -> dict[str, float]:
        seed = generator_at(config.seed, number).initial_seed()
        shape = (len(groups[number]), min(settings.images, len(training)))

        def batch(at: int) -> tuple[Tensor, Tensor]:
            draws = generator_at(seed, at)
            images, labels = drawn(config, training, torch.randint(len(training), shape, generator=draws), draws)
            return task.inputs(images), labels

        found = ensemble.train(
            template, len(groups[number]), batch, cross_entropies, steps=settings.steps(len(training)), seed=seed,
            lr=settings.learning_rate, group=ranks.group(),
        )  # fmt: skip
        groups[number].copy_(found)
        return dict(zip(("loss", "accuracy"), mean_scores(net, found, validation), strict=True))

    return Training(
        # A step is a whole training: each is logged, validated and saved.
        task.name, replace(config, log_every=1, checkpoint_every=1, validate_every=1), MAY_DIFFER, len(groups), networks,
        torch.optim.SGD(networks.parameters()),  # the loop wants one to save; it has no state
        step=step, shares="baseline.members_at_once" if shared else "", metrics=("loss", "accuracy"),
        shows="validation cross-entropy {loss:.3f}, {accuracy:.2%} right",
    )  # fmt: skip


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """[M], of logits [M,n,C] and labels [M,n], nats."""
    each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return each.unflatten(0, labels.shape).mean(1)


# ---- dropout ----------------------------------------------------------------------------------------


def thinned_inputs(net: TargetNet) -> int:
    """What the linear layers of a network read, all together."""
    return sum(shape[1] for _, shape, _ in net.layout if len(shape) == 2)


def thinned(net: TargetNet, theta: Tensor, z: Tensor, p: float) -> Tensor:
    """theta [P], z [m,thinned_inputs] uniform in [-1, 1) -> [m,P]: networks each of which has dropped, with
    probability p, inputs of its linear layers, and scales the others by 1 / (1 - p).
    """
    kept = (z >= 2 * p - 1).to(theta.dtype) / (1 - p)
    weights = net.unflatten(theta.expand(len(z), -1))
    at = 0
    for name, shape, _ in net.layout:
        if len(shape) == 2:
            weights[name] = weights[name] * kept[:, None, at : at + shape[1]]
            at += shape[1]
    return net.flatten(weights)


# ---- multiplicative normalizing flows ---------------------------------------------------------------


def build_flows(
    task: Task, config: ClassifierConfig, device: torch.device
) -> tuple[TargetNet, MultiplicativeFlows, torch.optim.Adam]:
    """Target network with biases, posterior initialised by config.seed (the same on every device), optimizer."""
    net, b = task.net(config), config.baseline
    with seeded(config.seed):
        flows = MultiplicativeFlows(net, b.q_hidden, b.r_hidden, b.q_steps, b.r_steps).to(device)
    return net, flows, torch.optim.Adam(flows.parameters(), b.learning_rate, fused=True)


def _train_flows(
    task: Task, config: ClassifierConfig, training: Labelled, validation: Labelled, device: torch.device
) -> Training:
    net, flows, optimizer = build_flows(task, config, device)
    settings = config.baseline
    shape = (settings.networks, settings.images // settings.networks)
    of_validation = flows.noise(config.seed)(torch.arange(config.validation_networks)).to(device)

    def step(number: int) -> dict[str, Tensor]:
        draws = generator_at(config.seed, number)
        noise = torch.randn(settings.networks, flows.noise_size, generator=draws).to(device)
        images, labels = drawn(config, training, torch.randint(len(training), shape, generator=draws), draws)
        return variational.variational_step(
            net, flows, optimizer, noise, task.inputs(images), labels, len(training), settings.largest_deviation, draws
        )

    @torch.no_grad()
    def validate() -> dict[str, float]:
        return dict(zip(VALIDATION, mean_scores(net, flows(of_validation), validation), strict=True))

    return Training(
        task.name, config, MAY_DIFFER, settings.steps(len(training)), flows, optimizer, step=step, validate=validate,
        shares="baseline.networks",
        metrics=variational.METRICS, validation=VALIDATION,
        shows="CE {cross_entropy:.3f}, KL {kl:.0f}, {batch_accuracy:.1%} right",
        tells="validation cross-entropy {loss:.4f}, "
        f"mean accuracy of {config.validation_networks} networks {{accuracy:.2%}}",
    )  # fmt: skip
