"""Training on random pixels of random patches: one model for all scales."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ....data.bicubic import resize_bicubic
from ....data.missing import fill_missing
from ....models import FunctionalImage
from ... import checkpoint, ranks
from ...loop import Training, report
from ...loop import run as run_loop
from ...training import descend, generator_at, half_cosine, seeded
from .config import MAY_DIFFER, NAME, Config
from .metrics import psnr
from .patches import Pair, Patches, known_at_random, pair_of, read_training

METRICS = ("loss", "psnr", "gradient_norm", "learning_rate")


def build(config: Config, device: torch.device) -> tuple[FunctionalImage, torch.optim.Adam]:
    """The model, initialised by config.seed (the same on every device), and its optimizer."""
    with seeded(config.seed):
        model = FunctionalImage(
            3,
            config.patch,
            config.predicts,
            config.norm,
            config.missing > 0,
            config.width,
            config.branch_width,
            config.context,
        ).to(device)
    return model, torch.optim.Adam(model.parameters(), config.learning_rate)


def train_step(
    config: Config, model: FunctionalImage, optimizer: torch.optim.Optimizer, patches: Patches, step: int
) -> dict[str, Tensor | float]:
    """One step; metrics as scalars, psnr in dB of all channels at the drawn pixels."""
    device = next(model.parameters()).device
    batch = patches.draw(generator_at(config.seed, step))
    base = batch.base.to(device) if config.predicts == "residual" else None
    y = model(batch.patches.to(device), batch.points.to(device), batch.scale.to(device), base)
    loss = F.mse_loss(y, batch.colours.to(device))
    rate = half_cosine(config.learning_rate, config.final_learning_rate, step / config.steps)
    rate *= min(1, (step + 1) / (config.warmup + 1))
    norm = descend(model, optimizer, loss, config.clip, rate)
    reached = -10 * ranks.average(loss.detach()).log10()
    return dict(zip(METRICS, (loss.detach(), reached, norm, rate), strict=True))


def validate(config: Config, model: FunctionalImage, pairs: dict[int, list[Pair]]) -> dict[str, float]:
    """Mean PSNR of luma at each trained scale, and the gain over bicubic.

    Where pixels may be missing, config.missing / 2 of them are, and fill_missing comes before bicubic.
    """
    device = next(model.parameters()).device
    found: dict[str, float] = {}
    for scale, every in pairs.items():
        ours, plain = [], []
        for pair in every:
            low, known, size = pair.low.to(device), None, pair.high.shape[1:]
            if config.missing:
                known = known_at_random(low.shape[1:], config.missing / 2).to(device)
            ours.append(psnr(model.upscale(low, scale, known).cpu(), pair.high, scale))
            base = low if known is None else fill_missing(low, known)
            plain.append(psnr(resize_bicubic(base, size).cpu(), pair.high, scale))
        mean = sum(ours) / len(ours)
        found |= {f"psnr_x{scale}": mean, f"gain_x{scale}": mean - sum(plain) / len(plain)}
    return found


def train(
    config: Config,
    pictures: list[Tensor],
    out: Path,
    device: torch.device,
    resume: bool = False,
    after_step: Callable[[int], None] = lambda step: None,
) -> int:
    """Trains to config.steps, see loop.run; the step reached. pictures: [3,H,W] uint8."""
    if config.held_out >= len(pictures):
        raise ValueError(f"config.held_out must be less than the {len(pictures)} pictures; got {config.held_out}")
    model, optimizer = build(config, device)
    count = len(pictures) - config.held_out
    patches = Patches(config, pictures[:count])
    held_out = pictures[count:][: config.validation_pictures]
    pairs = {scale: [pair_of("", picture, scale) for picture in held_out] for scale in config.scales}
    names = [f"{name}_x{scale}" for scale in config.scales for name in ("psnr", "gain")]
    return run_loop(
        Training(
            NAME, config, MAY_DIFFER, config.steps, model, optimizer, shares="batch",
            step=lambda step: train_step(config, model, optimizer, patches, step),
            validate=(lambda: validate(config, model, pairs)) if held_out else None,
            metrics=METRICS, validation=names,
            shows="PSNR {psnr:.2f} dB",
            tells=", ".join(f"x{s} {{psnr_x{s}:.2f}} dB ({{gain_x{s}:+.2f}} over bicubic)" for s in config.scales),
        ),
        out, resume, after_step,
    )  # fmt: skip


def load_config(path: Path) -> Config:
    """The config of a checkpoint."""
    return checkpoint.load_config(Config, path, NAME)


def load(path: Path, device: torch.device) -> tuple[FunctionalImage, Config, int]:
    """The model of a checkpoint in eval mode, its config and its step."""
    return checkpoint.load_model(Config, path, NAME, lambda config: build(config, device))


def run(config: Config, out: Path, data_root: Path | None, device: torch.device, resume: bool) -> None:
    """`hyperfast train functional_images/super_resolution`."""
    step = train(config, read_training(config, data_root), out, device, resume)
    report(NAME, step, config.steps, out)
