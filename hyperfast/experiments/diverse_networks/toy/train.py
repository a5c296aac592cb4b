"""Training a curve in the plane for high values and diversity at once (Deutsch, section 4.1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ....ops import nearest_neighbor
from ... import checkpoint, ranks
from ...experiment import Trained
from ...loop import Training, report
from ...loop import run as run_loop
from ...training import descend_unclipped, generator_at
from .config import MAY_DIFFER, NAME, Config
from .mixture import value

METRICS = ("loss", "value", "entropy", "squared_norm", "learning_rate")
_EPS = 1e-7


def build(config: Config, device: torch.device) -> tuple[nn.Sequential, torch.optim.Adam]:
    """The hypernetwork 1-30-10-10-2, initialised by config.seed (the same on every device), and its optimizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        hypernetwork = nn.Sequential(
            nn.Linear(1, 30), nn.Tanh(), nn.Linear(30, 10), nn.Tanh(), nn.Linear(10, 10), nn.Tanh(), nn.Linear(10, 2)
        ).to(device)
    return hypernetwork, torch.optim.Adam(hypernetwork.parameters(), config.learning_rate)


def entropy(y: Tensor) -> Tensor:
    """Kozachenko-Leonenko of points y [N,2] on a curve (d = 1), nats, with the constants of the paper's code:

    H = 1/N sum_i log(sqrt(d_i^2 + eps) + eps) + psi(N) + gamma + log(pi)/2 - log Gamma(3/2), eps = 1e-7.
    """
    _, index = nearest_neighbor(y.detach())
    distance = ((y - y[index]).square().sum(1) + _EPS).sqrt()
    psi_plus_gamma = sum(1 / k for k in range(1, len(y)))
    return torch.log(distance + _EPS).mean() + psi_plus_gamma + math.log(math.pi) / 2 - math.lgamma(1.5)


def train_step(
    config: Config, hypernetwork: nn.Module, optimizer: torch.optim.Optimizer, step: int
) -> dict[str, Tensor | float]:
    """One step on config.points new points; metrics as scalar tensors."""
    z = torch.rand(config.points, 1, generator=generator_at(config.seed, step)) * 2 - 1
    y = hypernetwork(ranks.own(z).to(next(hypernetwork.parameters()).device))
    height, diversity, squared_norm = value(y).mean(), entropy(ranks.gathered(y)), y.square().sum(1).mean()
    loss = -height - config.diversity_weight * diversity + config.norm_weight * squared_norm
    rate = config.learning_rate_at(step)
    descend_unclipped(hypernetwork, optimizer, loss, rate)
    measured = (loss.detach(), height.detach(), diversity.detach(), squared_norm.detach(), rate)
    return dict(zip(METRICS, measured, strict=True))


def train(
    config: Config,
    out: Path,
    device: torch.device,
    resume: bool = False,
    after_step: Callable[[int], None] = lambda step: None,
) -> int:
    """Trains to config.steps, see loop.run; the step reached."""
    hypernetwork, optimizer = build(config, device)
    return run_loop(
        Training(
            NAME, config, MAY_DIFFER, config.steps, hypernetwork, optimizer, shares="points",
            step=lambda step: train_step(config, hypernetwork, optimizer, step),
            metrics=METRICS,
            shows="loss {loss:.2f}, f {value:.3f}, H {entropy:.2f}",
        ),
        out, resume, after_step,
    )  # fmt: skip


def load_hypernetwork(path: Path, device: torch.device) -> tuple[nn.Module, int]:
    """The hypernetwork of a checkpoint, and the steps it was trained for."""
    state, config, step = checkpoint.load_with_config(Config, path, NAME)
    hypernetwork, _ = build(config, device)
    checkpoint.restore(hypernetwork, None, state)
    return hypernetwork.requires_grad_(False), step


def load_config(path: Path) -> Config:
    """The config of a checkpoint."""
    return checkpoint.load_config(Config, path, NAME)


def load(path: Path, device: torch.device, seed: int) -> Trained:
    """What `hyperfast sample` and `predict` ask for and this experiment does not have."""
    raise ValueError(f"{NAME} generates points of the plane, not networks: nothing to sample; `evaluate` writes them")


def run(config: Config, out: Path, data_root: Path | None, device: torch.device, resume: bool) -> None:
    """`hyperfast train diverse_networks/toy`; it reads no data."""
    report(NAME, train(config, out, device, resume), config.steps, out)
