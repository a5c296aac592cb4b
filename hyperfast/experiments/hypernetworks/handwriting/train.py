"""Batches of whole lines, each scaled a little; backpropagation through all of their points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ....data import Handwriting, load_handwriting
from ... import checkpoint, ranks
from ...loop import Training, report
from ...loop import run as run_loop
from ...training import descend, generator_at, seeded
from .config import MAY_DIFFER, NAME, Config
from .model import HandwritingModel

METRICS = ("loss", "log_loss", "gradient_norm")
VALIDATION = ("log_loss",)


def build(config: Config, device: torch.device) -> tuple[HandwritingModel, torch.optim.Adam]:
    """The model, initialised by config.seed (the same on every device), and its optimizer."""
    with seeded(config.seed):
        model = HandwritingModel(config).to(device)
    return model, torch.optim.Adam(model.parameters(), config.learning_rate)


def long_enough(lines: Sequence[Tensor], config: Config, device: torch.device) -> list[Tensor]:
    """The lines of at least config.min_length points, on the device."""
    return [line.to(device) for line in lines if len(line) >= config.min_length]


def drawn_batch(config: Config, lines: Sequence[Tensor], draws: torch.Generator) -> list[Tensor]:
    """config.batch different lines, each with its offsets times a factor of its own."""
    picks = torch.randperm(len(lines), generator=draws)[: config.batch].tolist()
    factors = 1 + config.scale * (2 * torch.rand(len(picks), generator=draws) - 1)
    return [lines[i] * lines[i].new_tensor([f, f, 1]) for i, f in zip(picks, factors.tolist(), strict=True)]


def train_step(
    config: Config, model: HandwritingModel, optimizer: torch.optim.Optimizer, lines: Sequence[Tensor], step: int
) -> dict[str, Tensor | float]:
    """One batch. What descends is the loss of a point: with that of a line nearly every gradient would be clipped."""
    draws = generator_at(config.seed, step)
    batch = drawn_batch(config, lines, draws)
    # Of dropout, whose kernels number the lines of a rank from 0: each rank has its own.
    with seeded(generator_at(config.seed, step, ranks.number()).initial_seed(), model.mean.device):
        log_loss = model.log_loss(ranks.own(batch))
    points = sum(len(line) - 1 for line in batch)
    loss = log_loss.sum() * ranks.count() / points  # whose mean over the ranks is that of all points
    norm = descend(model, optimizer, loss, config.clip)
    return {"loss": loss.detach(), "log_loss": log_loss.detach().mean(), "gradient_norm": norm}


def train(
    config: Config,
    handwriting: Handwriting,
    out: Path,
    device: torch.device,
    resume: bool = False,
    after_step: Callable[[int], None] = lambda step: None,
) -> int:
    """Trains to config.steps, see loop.run; the step reached.

    Raises ValueError where fewer lines than config.batch are long enough, or none to validate with is.
    """
    lines, validation = (long_enough(part, config, device) for part in (handwriting.train, handwriting.validation))
    if len(lines) < config.batch or not validation:
        raise ValueError(
            f"{len(lines)} lines to train on and {len(validation)} to validate with have at least config.min_length "
            f"{config.min_length} points; config.batch {config.batch} and 1 are needed"
        )
    model, optimizer = build(config, device)
    model.measure(lines)
    return run_loop(
        Training(
            NAME, config, MAY_DIFFER, config.steps, model, optimizer, shares="batch",
            step=lambda step: train_step(config, model, optimizer, lines, step),
            validate=lambda: {"log_loss": model.mean_log_loss(validation[: config.validation_lines])},
            metrics=METRICS, validation=VALIDATION,
            shows="{log_loss:.1f} nats a line",
            tells="validation {log_loss:.2f} nats a line",
        ),
        out, resume, after_step,
    )  # fmt: skip


def load_config(path: Path) -> Config:
    """The config of a checkpoint."""
    return checkpoint.load_config(Config, path, NAME)


def load(path: Path, device: torch.device) -> tuple[HandwritingModel, Config, int]:
    """The model of a checkpoint in eval mode, its config and its step."""
    return checkpoint.load_model(Config, path, NAME, lambda config: build(config, device))


def run(config: Config, out: Path, data_root: Path | None, device: torch.device, resume: bool) -> None:
    """`hyperfast train hypernetworks/handwriting`."""
    handwriting = load_handwriting(config.lines, data_root, config.split)
    report(NAME, train(config, handwriting, out, device, resume), config.steps, out)
