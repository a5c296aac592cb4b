"""HyperGAN of curves (section 4.3): the mean squared error on noisy points in place of the cross-entropy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ....models import HyperGAN, targets
from ....nn import TargetNet
from ... import checkpoint, ranks
from ...experiment import Trained
from ...loop import Training, report
from ...loop import run as run_loop
from ...training import generator_at, seeded
from .. import adversarial
from .config import MAY_DIFFER, NAME, Config

METRICS = (*adversarial.METRICS, "squared_error")


def build(config: Config, device: torch.device) -> tuple[TargetNet, HyperGAN, torch.optim.Adam]:
    """Target network, HyperGAN initialised by config.seed (the same on every device), optimizer."""
    net = TargetNet(targets.hypergan_regression(config.units))
    with seeded(config.seed):
        model = HyperGAN(net, config.noise, config.code, (config.hidden, config.hidden)).to(device)
    return net, model, adversarial.optimizer_of(config, model)


def noisy_points(config: Config) -> tuple[Tensor, Tensor]:
    """x [points,1], uniform in [-4, 4], and y = x^3 + N(0, deviation^2) [points,1]."""
    draws = torch.Generator().manual_seed(config.data_seed)
    x = torch.rand(config.points, 1, generator=draws) * 8 - 4
    return x, x**3 + config.deviation * torch.randn(config.points, 1, generator=draws)


def train_step(
    config: Config,
    net: TargetNet,
    model: HyperGAN,
    optimizer: torch.optim.Optimizer,
    points: tuple[Tensor, Tensor],
    step: int,
) -> dict[str, Tensor | float]:
    """One adversarial_step on the mean squared error of the networks on all points; metrics as scalar tensors."""
    x, y = points

    def loss_of(theta: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        error = (net(x, theta) - y).square().mean()
        return error, {"squared_error": error.detach()}

    return adversarial.adversarial_step(config, model, optimizer, generator_at(config.seed, step), step, loss_of)


def train(
    config: Config,
    out: Path,
    device: torch.device,
    resume: bool = False,
    after_step: Callable[[int], None] = lambda step: None,
) -> int:
    """Trains to config.steps, see loop.run; the step reached."""
    net, model, optimizer = build(config, device)
    x, y = noisy_points(config)
    points = x.to(device), y.to(device)

    def step(number: int) -> dict[str, Tensor | float]:
        if number == 0:
            adversarial.pretrain(config, model)
            ranks.same(model)
        return train_step(config, net, model, optimizer, points, number)

    return run_loop(
        Training(
            NAME, config, MAY_DIFFER, config.steps, model, optimizer, shares="networks",
            step=step, metrics=METRICS,
            shows="squared error {squared_error:.2f}, codes' std {code_std:.2f}",
        ),
        out, resume, after_step,
    )  # fmt: skip


def load(path: Path, device: torch.device, seed: int) -> Trained:
    """The networks' generator of a checkpoint."""
    state, config, step = checkpoint.load_with_config(Config, path, NAME)
    net, model, _ = build(config, device)
    checkpoint.restore(model, None, state)
    model.requires_grad_(False)
    noise = model.noise(seed)
    return Trained.of_noise(net, lambda indices: noise(indices).to(device), model, step)


def load_config(path: Path) -> Config:
    """The config of a checkpoint."""
    return checkpoint.load_config(Config, path, NAME)


def read_inputs(path: Path) -> Tensor:
    """[N,1] float32, the x of a .npy of floats [N] or [N,1]. Raises ValueError that names the file and what was expected."""
    try:
        values = np.load(path, allow_pickle=False)
    except (EOFError, ValueError) as problem:
        raise ValueError(f"{path} is not a readable .npy file: {problem}") from problem
    if values.shape[1:] not in ((), (1,)) or not values.ndim or not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"{path}: floats [N] or [N,1] were expected; got {values.dtype} {list(values.shape)}")
    return torch.from_numpy(values).float().reshape(-1, 1)


def run(config: Config, out: Path, data_root: Path | None, device: torch.device, resume: bool) -> None:
    """`hyperfast train hypergan/regression`; it reads no data."""
    report(NAME, train(config, out, device, resume), config.steps, out)
