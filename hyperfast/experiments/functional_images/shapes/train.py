"""Points that a generated network makes of a circle, driven to where the picture is bright (Klocek et al., equation 1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ....data import load_digits, load_mnist
from ....models import BranchedHypernetwork, targets
from ....nn import TargetNet
from ....ops import kde_cross_entropy
from ... import checkpoint, ranks
from ...loop import Training, report
from ...loop import run as run_loop
from ...training import descend, generator_at, seeded
from .config import MAY_DIFFER, NAME, Config

METRICS = ("loss", "gradient_norm", "learning_rate")
VALIDATION = ("cross_entropy",)
_PICTURES_AT_ONCE = 256
_SIDES = {"mnist": 28, "embedded": 8}


@dataclass(frozen=True)
class Pictures:
    """Each [N,1,S,S] float32 in [0, 1]."""

    train: Tensor
    validation: Tensor
    test: Tensor


def read(config: Config, data_root: Path | None) -> Pictures:
    """The pictures that config.data names, the last config.held_out of the training ones held out."""
    if config.data == "mnist":
        parts = load_mnist(data_root).split(config.held_out)
        return Pictures(*(part.images for part in parts))
    digits = load_digits()
    train, test = (images.view(-1, 1, 8, 8) for images in (digits.train_images, digits.test_images))
    if config.held_out >= len(train):
        raise ValueError(f"config.held_out must be less than the {len(train)} pictures; got {config.held_out}")
    return Pictures(train[: -config.held_out], train[-config.held_out :], test)


def build(config: Config, device: torch.device) -> tuple[TargetNet, BranchedHypernetwork, torch.optim.Adam]:
    """Target network, hypernetwork initialised by config.seed (the same on every device), optimizer."""
    side = _SIDES[config.data]
    with seeded(config.seed):
        net = TargetNet(targets.klocek_mlp())
        hypernetwork = BranchedHypernetwork(net, 1, (side, side), config.width, config.branch_width).to(device)
    return net, hypernetwork, torch.optim.Adam(hypernetwork.parameters(), config.learning_rate)


def circle(turns: Tensor) -> Tensor:
    """Angles [...] in turns -> points [...,2] of the unit circle."""
    angle = 2 * math.pi * turns
    return torch.stack([angle.cos(), angle.sin()], -1)


def pixels(side: int, device: torch.device) -> Tensor:
    """[S*S,2]: (x, y) of the pixels' centres, row by row, in a picture of side 1; y points down."""
    centres = (torch.arange(side, device=device) + 0.5) / side
    return torch.cartesian_prod(centres, centres).flip(1)


def distribution(pictures: Tensor) -> Tensor:
    """[B,1,S,S] -> [B,S*S]: brightness of sum 1; a black picture stays zero."""
    brightness = pictures.flatten(1)
    return brightness / brightness.sum(1, keepdim=True).clamp_min(1e-12)


def cross_entropy(pictures: Tensor, points: Tensor, sigma: float) -> Tensor:
    """Of pictures [B,1,S,S] under points [B,n,2], or [n,2] for all: [B], nats. 0 is that of the even square."""
    weight = distribution(pictures)
    points = points.expand(len(pictures), *points.shape[-2:])
    return kde_cross_entropy(pixels(pictures.shape[-1], pictures.device), points, weight, sigma)


def train_step(
    config: Config,
    net: TargetNet,
    hypernetwork: BranchedHypernetwork,
    optimizer: torch.optim.Optimizer,
    pictures: Tensor,
    step: int,
) -> dict[str, Tensor | float]:
    """One step on config.batch pictures, with fresh points of the circle; metrics as scalar tensors."""
    draws, device = generator_at(config.seed, step), pictures.device
    chosen = ranks.own(pictures[torch.randint(len(pictures), (config.batch,), generator=draws).to(device)])
    z = circle(torch.rand(config.points, generator=draws)).to(device)
    loss = cross_entropy(chosen, net(z, hypernetwork(chosen)), config.sigma).mean()
    rate = config.learning_rate_at(step)
    norm = descend(hypernetwork, optimizer, loss, config.clip, rate)
    return dict(zip(METRICS, (loss.detach(), norm, rate), strict=True))


@torch.no_grad()
def scores(config: Config, net: TargetNet, hypernetwork: BranchedHypernetwork, pictures: Tensor) -> Tensor:
    """[N]: cross-entropies of pictures under config.points points at equal angles, in eval mode."""
    training = hypernetwork.training
    hypernetwork.eval()
    z = circle(torch.arange(config.points, device=pictures.device) / config.points)
    parts = [cross_entropy(p, net(z, hypernetwork(p)), config.sigma) for p in pictures.split(_PICTURES_AT_ONCE)]
    hypernetwork.train(training)
    return torch.cat(parts)


def train(
    config: Config,
    pictures: Pictures,
    out: Path,
    device: torch.device,
    resume: bool = False,
    after_step: Callable[[int], None] = lambda step: None,
) -> int:
    """Trains to config.steps, see loop.run; the step reached."""
    net, hypernetwork, optimizer = build(config, device)
    training, held_out = pictures.train.to(device), pictures.validation[: config.validation_pictures].to(device)
    return run_loop(
        Training(
            NAME, config, MAY_DIFFER, config.steps, hypernetwork, optimizer, shares="batch",
            step=lambda step: train_step(config, net, hypernetwork, optimizer, training, step),
            validate=lambda: {"cross_entropy": scores(config, net, hypernetwork, held_out).mean().item()},
            metrics=METRICS, validation=VALIDATION,
            shows="cross-entropy {loss:.3f} nats",
            tells="validation cross-entropy {cross_entropy:.3f} nats",
        ),
        out, resume, after_step,
    )  # fmt: skip


def load_config(path: Path) -> Config:
    """The config of a checkpoint."""
    return checkpoint.load_config(Config, path, NAME)


def load(path: Path, device: torch.device) -> tuple[TargetNet, BranchedHypernetwork, Config, int]:
    """Target network, hypernetwork of a checkpoint in eval mode, its config and its step."""
    state, config, step = checkpoint.load_with_config(Config, path, NAME)
    net, hypernetwork, _ = build(config, device)
    checkpoint.restore(hypernetwork, None, state)
    return net, hypernetwork.eval().requires_grad_(False), config, step


def run(config: Config, out: Path, data_root: Path | None, device: torch.device, resume: bool) -> None:
    """`hyperfast train functional_images/shapes`."""
    step = train(config, read(config, data_root), out, device, resume)
    report(NAME, step, config.steps, out)
