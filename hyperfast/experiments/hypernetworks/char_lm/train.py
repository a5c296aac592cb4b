"""Stateful truncated backpropagation through a text that is read in `batch` places at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ....data import Text, load_text
from ... import checkpoint, ranks
from ...loop import Training, report
from ...loop import run as run_loop
from ...training import descend, generator_at, seeded
from .config import MAY_DIFFER, NAME, Config
from .model import CharacterModel

METRICS = ("loss", "bits_per_character", "gradient_norm")
VALIDATION = ("bits_per_character",)


def build(config: Config, text: Text, device: torch.device) -> tuple[CharacterModel, torch.optim.Adam]:
    """The model, initialised by config.seed (the same on every device), and its optimizer."""
    with seeded(config.seed):
        model = CharacterModel(config, len(text.symbols)).to(device)
    return model, torch.optim.Adam(model.parameters(), config.learning_rate)


def places(text: Tensor, batch: int) -> Tensor:
    """[N] -> [batch, N // batch]: where each of the sequences reads; what is left over at the end is not read.

    Raises ValueError where a place would have fewer than two characters.
    """
    if len(text) < 2 * batch:
        raise ValueError(f"a text of {len(text)} characters is too short for config.batch {batch}")
    return text[: len(text) // batch * batch].view(batch, -1)


def steps_per_epoch(parts: Tensor, length: int) -> int:
    """Stretches of `length` characters in a place, each with the character after it; at least one."""
    return max(1, (parts.shape[1] - 1) // length)


def train_step(
    config: Config, model: CharacterModel, optimizer: torch.optim.Optimizer, parts: Tensor, step: int
) -> dict[str, Tensor | float]:
    """One stretch of text; the state goes on from the step before, and is zero at the beginning of an epoch."""
    at = step % steps_per_epoch(parts, config.length)
    stretch = ranks.own(parts[:, at * config.length : (at + 1) * config.length + 1]).T
    state = None if at == 0 else [ranks.own(part, 1) for part in model.carry]
    # Of dropout, whose kernels number the sequences of a rank from 0: each rank has its own.
    with seeded(generator_at(config.seed, step, ranks.number()).initial_seed(), parts.device):
        logits, state = model(stretch[:-1], state)
    loss = F.cross_entropy(logits.flatten(0, 1), stretch[1:].flatten().long())
    norm = descend(model, optimizer, loss, config.clip)
    model.keep([ranks.gathered(part.detach(), 1) for part in state])
    return {"loss": loss.detach(), "bits_per_character": loss.detach() / math.log(2), "gradient_norm": norm}


def train(
    config: Config,
    text: Text,
    out: Path,
    device: torch.device,
    resume: bool = False,
    after_step: Callable[[int], None] = lambda step: None,
) -> tuple[int, int]:
    """Trains to the config's last step, see loop.run: (the step reached, the last one)."""
    model, optimizer = build(config, text, device)
    parts = places(text.train, config.batch).to(device)
    validation = text.validation[: config.validation_characters].to(device)
    steps = config.steps if config.steps is not None else config.epochs * steps_per_epoch(parts, config.length)
    reached = run_loop(
        Training(
            NAME, config, MAY_DIFFER, steps, model, optimizer, shares="batch",
            step=lambda step: train_step(config, model, optimizer, parts, step),
            validate=lambda: {"bits_per_character": model.bits_per_character(validation)},
            metrics=METRICS, validation=VALIDATION,
            shows="{bits_per_character:.3f} bits per character",
            tells="validation {bits_per_character:.4f} bits per character",
        ),
        out, resume, after_step,
    )  # fmt: skip
    return reached, steps


def load_config(path: Path) -> Config:
    """The config of a checkpoint."""
    return checkpoint.load_config(Config, path, NAME)


def load(path: Path, data_root: Path | None, device: torch.device) -> tuple[CharacterModel, Config, Text, int]:
    """The model of a checkpoint in eval mode, its config, its text and its step."""
    state, config, step = checkpoint.load_with_config(Config, path, NAME)
    text = load_text(config.text, data_root)
    model, _ = build(config, text, device)
    checkpoint.restore(model, None, state)
    return model.eval().requires_grad_(False), config, text, step


def run(config: Config, out: Path, data_root: Path | None, device: torch.device, resume: bool) -> None:
    """`hyperfast train hypernetworks/char_lm`."""
    step, steps = train(config, load_text(config.text, data_root), out, device, resume)
    report(NAME, step, steps, out)
