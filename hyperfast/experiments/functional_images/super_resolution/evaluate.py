"""Tables like the paper's 1 and 2, with bicubic beside them; stretched and filled pictures."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from ....data.bicubic import resize_bicubic
from ....models import FunctionalImage
from ...tables import write_csv, write_json
from ...training import ProgressBar
from .config import Config, Evaluation
from .figures import FIGURES, Compared, draw
from .metrics import psnr, ssim
from .patches import Pair, read_pairs
from .train import load

COLUMNS = ("set", "scale", "pictures", "psnr", "ssim", "bicubic_psnr", "bicubic_ssim", "trained")


def compare(model: FunctionalImage, pair: Pair, scale: float, device: torch.device) -> tuple[Compared, list[float]]:
    """What is drawn of a pair, and PSNR and SSIM of ours, then of bicubic."""
    ours = model.upscale(pair.low.to(device), scale).cpu()
    bicubic = resize_bicubic(pair.low, pair.high.shape[1:]).clamp(0, 1)
    if ours.shape != pair.high.shape:  # a scale of which the picture has no whole number of pixels
        raise ValueError(f"{pair.name}: {tuple(ours.shape)} was made, {tuple(pair.high.shape)} is the original")
    border = math.ceil(scale)
    values = [measure(found, pair.high, border) for found in (ours, bicubic) for measure in (psnr, ssim)]
    return Compared(pair.name, scale, pair.low, bicubic, ours, pair.high), values


def rows(
    model: FunctionalImage, config: Config, settings: Evaluation, data_root: Path | None, device: torch.device
) -> tuple[list[dict], list[Compared]]:
    """A row for each set and scale, and the first pictures at the largest scale."""
    table, drawn = [], []
    for name in settings.sets:
        for scale in settings.scales:
            pairs = read_pairs(name, scale, data_root, settings.pictures)
            every = []
            with ProgressBar(f"{name} x{scale:g}", len(pairs)) as bar:
                for i, pair in enumerate(pairs):
                    compared, values = compare(model, pair, scale, device)
                    every.append(values)
                    if name == settings.sets[0] and scale == max(settings.scales) and i < settings.drawn:
                        drawn.append(compared)
                    bar.update(i + 1)
            means = [sum(column) / len(column) for column in zip(*every, strict=True)]
            trained = scale in config.scales
            table.append(dict(zip(COLUMNS, (name, scale, len(pairs), *means, trained), strict=True)))
    return table, drawn


def filled(model: FunctionalImage, picture: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """(picture [C,H,W] with a share of its pixels missing and a square hole in its middle, the model's at scale 1)."""
    generator = torch.Generator().manual_seed(0)
    known = (torch.rand(1, *picture.shape[1:], generator=generator) >= share).float()
    rows_, cols = picture.shape[1:]
    known[:, rows_ // 2 - 4 : rows_ // 2 + 4, cols // 2 - 4 : cols // 2 + 4] = 0
    known = known.to(picture)
    return picture * known, model.upscale(picture, 1, known)


def run(
    settings: Evaluation, path: Path, out: Path, data_root: Path | None, device: torch.device, figures: tuple[str, ...]
) -> None:
    """`hyperfast evaluate functional_images/super_resolution`: table.csv, evaluation.json, figures."""
    model, config, step = load(path, device)
    out.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    table, drawn = rows(model, config, settings, data_root, device)
    write_csv(out / "table.csv", table)
    about = {
        "checkpoint": str(path), "step": step, "settings": asdict(settings), "config": asdict(config),
        "parameters": sum(p.numel() for p in model.parameters()), "seconds": time.perf_counter() - begun, "table": table,
    }  # fmt: skip
    write_json(out / "evaluation.json", about)
    for row in table:
        print(
            f"{row['set']} x{row['scale']:g}: {row['psnr']:.2f} dB, {row['ssim']:.4f}; bicubic {row['bicubic_psnr']:.2f} "
            f"dB, {row['bicubic_ssim']:.4f}" + ("" if row["trained"] else " (a scale that was not trained)")
        )
    if figures:
        low = drawn[0].low.to(device)
        stretched = model.upscale(low, settings.stretch).cpu()
        holes = filled(model, drawn[0].low.to(device), settings.missing) if config.missing else None
        chosen = tuple(name for name in FIGURES if name in figures)
        print("\n".join(map(str, draw(chosen, drawn, stretched, holes, path.parent, out))))
