"""Training a curve in the plane for high values and diversity at once (Deutsch, section 4.1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ....reference.nn_entropy import nearest_neighbor
from ... import checkpoint
from ...experiment import Trained
from ...training import ProgressBar, Table, generator_at, stop_between_steps
from .config import MAY_DIFFER, NAME, Config
from .mixture import value

METRICS = ("loss", "value", "entropy", "squared_norm", "learning_rate")
CHECKPOINT = "checkpoint.safetensors"
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
    y = hypernetwork(z.to(next(hypernetwork.parameters()).device))
    height, diversity, squared_norm = value(y).mean(), entropy(y), y.square().sum(1).mean()
    loss = -height - config.diversity_weight * diversity + config.norm_weight * squared_norm
    rate = config.learning_rate_at(step)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    measured = (loss.detach(), height.detach(), diversity.detach(), squared_norm.detach(), rate)
    return dict(zip(METRICS, measured, strict=True))


def train(
    config: Config,
    out: Path,
    device: torch.device,
    resume: bool = False,
    after_step: Callable[[int], None] = lambda step: None,
) -> int:
    """Trains to config.steps, writes checkpoint and metrics.csv into `out`; the step reached.

    Ctrl-C stops after the step that is under way; the checkpoint is then usable, as one killed is from its last.
    Raises ValueError where `out` has a checkpoint and resume is False, where resume is True and it has none or
    one of another config, and where the loss is not finite any more.
    """
    path = out / CHECKPOINT
    if path.exists() and not resume:
        raise ValueError(f"{path} exists: go on from it with --resume, or write elsewhere with --out DIR")
    hypernetwork, optimizer = build(config, device)
    step = checkpoint.resume(path, NAME, config, hypernetwork, optimizer, MAY_DIFFER) if resume else 0
    metrics = Table(out / "metrics.csv", METRICS, step)
    shows = "loss {loss:.2f}, f {value:.3f}, H {entropy:.2f}"
    with ProgressBar("training", config.steps, step, shows) as bar, stop_between_steps() as asked_to_stop:
        while step < config.steps and not asked_to_stop():
            measured = train_step(config, hypernetwork, optimizer, step)
            step += 1
            last = step == config.steps
            logs, saves = step % config.log_every == 0, step % config.checkpoint_every == 0
            if last or logs or saves:
                row = {name: float(number) for name, number in measured.items()}
                if not math.isfinite(row["loss"]):
                    raise ValueError(
                        f"the loss is {row['loss']} at step {step}; a smaller --config.learning_rate may help"
                    )
                if last or logs:
                    metrics.add(step, row)
                    bar.update(step, **row)
                if saves and not last:
                    checkpoint.save_training(path, NAME, config, step, hypernetwork, optimizer)
            after_step(step)
        checkpoint.save_training(path, NAME, config, step, hypernetwork, optimizer)
    return step


def load_hypernetwork(path: Path, device: torch.device) -> tuple[nn.Module, int]:
    """The hypernetwork of a checkpoint, and the steps it was trained for."""
    state, about = checkpoint.load_training(path, NAME)
    hypernetwork, _ = build(load_config(path), device)
    checkpoint.restore(hypernetwork, None, state)
    return hypernetwork.requires_grad_(False), about["step"]


def load_config(path: Path) -> Config:
    """The config of a checkpoint."""
    return checkpoint.config_from(Config, checkpoint.load_training(path, NAME)[1]["config"], path)


def load(path: Path, device: torch.device, seed: int) -> Trained:
    """What `hyperfast sample` and `predict` ask for and this experiment does not have."""
    raise ValueError(f"{NAME} generates points of the plane, not networks: nothing to sample; `evaluate` writes them")


def run(config: Config, out: Path, data_root: Path | None, device: torch.device, resume: bool) -> None:
    """`hyperfast train diverse_networks/toy`; it reads no data."""
    step = train(config, out, device, resume)
    path = out / CHECKPOINT
    if step < config.steps:
        print(f"stopped after {step} of {config.steps} steps; {path} is usable: --resume goes on from it")
    else:
        print(f"{step} steps; now: hyperfast evaluate {NAME} --checkpoint {path}")
