"""Training on random pixels of random faces, each seen whole by the hypernetwork."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ....data.faces import Faces, load_faces
from ... import checkpoint, ranks
from ...loop import Training, report
from ...loop import run as run_loop
from ...training import EpochBatches, ProgressBar, descend, generator_at, half_cosine, seeded
from .config import MAY_DIFFER, NAME, Config
from .model import FaceFunctions, in_unit

METRICS = ("loss", "psnr", "gradient_norm", "learning_rate")
VALIDATION = ("loss", "psnr")
PICTURES_AT_ONCE = 64


def read(config: Config, data_root: Path | None) -> Faces:
    """The pictures that config.data names."""
    with ProgressBar("reading", 1, visible=ranks.is_first()) as bar:

        def show(done: int, total: int) -> None:
            bar.resize(total)
            bar.update(done)

        return load_faces(
            config.data, data_root, config.held_out, config.side, config.crop, config.pictures, progress=show
        )


def build(config: Config, device: torch.device) -> tuple[FaceFunctions, torch.optim.Adam]:
    """The model, initialised by config.seed (the same on every device), and its optimizer."""
    with seeded(config.seed):
        model = FaceFunctions(config).to(device)
    return model, torch.optim.Adam(model.parameters(), config.learning_rate)


def psnr(errors: Tensor) -> Tensor:
    """Mean squared errors, colours from 0 to 1 -> dB."""
    return -10 * errors.log10()


def train_step(
    config: Config, model: FaceFunctions, optimizer: torch.optim.Optimizer, pictures: Tensor, step: int
) -> dict[str, Tensor | float]:
    """One step on pictures [B,3,S,S] uint8; metrics as scalars, psnr in dB of the drawn pixels."""
    draws, device = generator_at(config.seed, step), next(model.parameters()).device
    chosen, pixels = in_unit(pictures, device), None
    if config.mirrored:
        turned = torch.rand(len(chosen), 1, 1, 1, generator=draws).to(device) < 0.5
        chosen = torch.where(turned, chosen.flip(3), chosen)
    count, chosen = len(chosen), ranks.own(chosen)
    colours = chosen.flatten(2).transpose(1, 2)  # [B,S*S,3]
    if config.points is not None:
        pixels = ranks.own(torch.randint(config.side**2, (count, config.points), generator=draws)).to(device)
        colours = colours.gather(1, pixels.unsqueeze(2).expand(-1, -1, 3))
    loss = F.mse_loss(model(chosen, pixels), colours)
    rate = half_cosine(config.learning_rate, config.final_learning_rate, step / config.steps)
    norm = descend(model, optimizer, loss, config.clip, rate)
    reached = psnr(ranks.average(loss.detach()))
    return dict(zip(METRICS, (loss.detach(), reached, norm, rate), strict=True))


@torch.no_grad()
def reconstructed(model: FaceFunctions, pictures: Tensor) -> Tensor:
    """Pictures [N,3,S,S] uint8 -> what their functions give, in eval mode, [N,3,S,S] on the CPU."""
    training, device = model.training, next(model.parameters()).device
    model.eval()
    parts = [model.render(model.hypernetwork(in_unit(some, device))).cpu() for some in pictures.split(PICTURES_AT_ONCE)]
    model.train(training)
    return torch.cat(parts)


def errors(found: Tensor, pictures: Tensor) -> Tensor:
    """[N]: mean squared errors of pictures [N,3,S,S] beside those of uint8."""
    return (found - in_unit(pictures, found.device)).square().flatten(1).mean(1)


def validate(model: FaceFunctions, pictures: Tensor) -> dict[str, float]:
    """Means over pictures of the mean squared error and of PSNR."""
    each = errors(reconstructed(model, pictures), pictures)
    return dict(zip(VALIDATION, (each.mean().item(), psnr(each).mean().item()), strict=True))


def train(
    config: Config,
    faces: Faces,
    out: Path,
    device: torch.device,
    resume: bool = False,
    after_step: Callable[[int], None] = lambda step: None,
) -> int:
    """Trains to config.steps, see loop.run; the step reached."""
    model, optimizer = build(config, device)
    batches = EpochBatches(len(faces.train), config.batch, config.seed)
    held_out = faces.validation[: config.validation_pictures]
    return run_loop(
        Training(
            NAME, config, MAY_DIFFER, config.steps, model, optimizer, shares="batch",
            step=lambda step: train_step(config, model, optimizer, faces.train[batches(step)], step),
            validate=lambda: validate(model, held_out),
            metrics=METRICS, validation=VALIDATION,
            shows="PSNR {psnr:.2f} dB",
            tells="validation PSNR {psnr:.2f} dB",
            best_by="loss",
        ),
        out, resume, after_step,
    )  # fmt: skip


def load_config(path: Path) -> Config:
    """The config of a checkpoint."""
    return checkpoint.load_config(Config, path, NAME)


def load(path: Path, device: torch.device) -> tuple[FaceFunctions, Config, int]:
    """The model of a checkpoint in eval mode, its config and its step."""
    return checkpoint.load_model(Config, path, NAME, lambda config: build(config, device))


def run(config: Config, out: Path, data_root: Path | None, device: torch.device, resume: bool) -> None:
    """`hyperfast train functional_images/faces`."""
    faces = read(config, data_root)
    if ranks.is_first():
        print(f"{faces.title}: {len(faces.train):,} to train with")
    report(NAME, train(config, faces, out, device, resume), config.steps, out)
