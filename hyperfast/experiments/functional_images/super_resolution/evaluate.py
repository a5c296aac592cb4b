"""Tables like the paper's 1 and 2, with bicubic beside them; stretched and filled pictures."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from ....data.bicubic import resize_bicubic
from ....data.missing import fill_missing
from ....models import FunctionalImage
from ...tables import write_csv, write_json
from ...training import ProgressBar
from .config import Config, Evaluation
from .figures import FIGURES, Compared, Filled, draw
from .metrics import decibels, psnr, ssim
from .patches import Pair, known_at_random, read_pairs
from .train import load

# Known pixels between the squares that are missing.
_APART = 12
FILLED = ("set", "missing", "pictures", "share", "psnr", "plain_psnr")
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


def masks(settings: Evaluation, size: Sequence[int]) -> dict[str, Tensor]:
    """[1,h,w] each, 0 where a pixel is missing: at random places; in squares that lie `_APART` pixels apart."""
    down, right = (torch.arange(side) % (settings.square + _APART) >= _APART for side in size)
    squares = down.unsqueeze(1) & right
    return {"pixels": known_at_random(size, settings.missing), "squares": (~squares).float().unsqueeze(0)}


def fill(
    model: FunctionalImage, settings: Evaluation, data_root: Path | None, device: torch.device
) -> tuple[list[dict], list[Filled]]:
    """A row for each set and mask, and the first picture with each: pictures at scale 1 of which pixels are missing.

    psnr is of all channels of the missing pixels, and plain_psnr that of fill_missing.
    """
    table, drawn = [], []
    for name in settings.sets:
        every: dict[str, list[list[float]]] = {}
        pairs = read_pairs(name, 1, data_root, settings.pictures)
        with ProgressBar(f"{name}, filled", len(pairs)) as bar:
            for i, pair in enumerate(pairs):
                for kind, known in masks(settings, pair.high.shape[1:]).items():
                    ours = model.upscale(pair.high.to(device), 1, known.to(device)).cpu()
                    plain = fill_missing(pair.high, known)
                    there = known[0] == 0
                    values = [decibels((f - pair.high)[:, there].square().mean().item(), 1) for f in (ours, plain)]
                    every.setdefault(kind, []).append([there.float().mean().item(), *values])
                    if name == settings.sets[0] and i == 0:
                        drawn.append(Filled(pair.high * known, plain, ours, pair.high))
                bar.update(i + 1)
        for kind, lines in every.items():
            means = [sum(column) / len(column) for column in zip(*lines, strict=True)]
            table.append(dict(zip(FILLED, (name, kind, len(lines), *means), strict=True)))
    return table, drawn


def run(
    settings: Evaluation, path: Path, out: Path, data_root: Path | None, device: torch.device, figures: tuple[str, ...]
) -> None:
    """`hyperfast evaluate functional_images/super_resolution`: table.csv, evaluation.json, figures."""
    model, config, step = load(path, device)
    out.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    table, drawn = rows(model, config, settings, data_root, device)
    write_csv(out / "table.csv", table)
    holes, shown = fill(model, settings, data_root, device) if config.missing else ([], [])
    if holes:
        write_csv(out / "filled.csv", holes)
    about = {
        "checkpoint": str(path), "step": step, "settings": asdict(settings), "config": asdict(config),
        "parameters": sum(p.numel() for p in model.parameters()), "seconds": time.perf_counter() - begun, "table": table,
        "filled": holes,
    }  # fmt: skip
    write_json(out / "evaluation.json", about)
    for row in table:
        print(
            f"{row['set']} x{row['scale']:g}: {row['psnr']:.2f} dB, {row['ssim']:.4f}; bicubic {row['bicubic_psnr']:.2f} "
            f"dB, {row['bicubic_ssim']:.4f}" + ("" if row["trained"] else " (a scale that was not trained)")
        )
    for row in holes:
        print(
            f"{row['set']}, {row['missing']} missing ({row['share']:.0%}): {row['psnr']:.2f} dB there; plainly filled "
            f"{row['plain_psnr']:.2f} dB"
        )
    if figures:
        low = drawn[0].low.to(device)
        stretched = model.upscale(low, settings.stretch).cpu()
        chosen = tuple(name for name in FIGURES if name in figures)
        print("\n".join(map(str, draw(chosen, drawn, stretched, shown, path.parent, out))))
