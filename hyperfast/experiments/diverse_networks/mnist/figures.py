"""The figures of diverse_networks/mnist, as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ...experiment import Trained
from ...figures import MANY, ONE, accuracy_by_size, accuracy_histogram, figure, save_png
from ...training import read_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .evaluate import Scores

FIGURES = ("histogram", "ensembles", "filters", "training")
SAMPLES = 25
_BIN = 0.05  # percent, as in the paper, whose 4,000 networks fill such bins


def draw(names: tuple[str, ...], scores: dict[str, Scores], trained: Trained, run: Path, out: Path) -> list[Path]:
    """Draws the figures named into `out` and returns their paths. run: the folder with the training's CSV files."""
    drawn: dict[str, Figure] = {}
    for of, found in scores.items():
        inputs = f"{of} images"
        if "histogram" in names:
            largest = max(found.vote, default=1)
            drawn[f"histogram_{of}"] = accuracy_histogram(
                found.member_accuracy,
                found.vote[largest][0] if found.vote else None,
                f"an ensemble of {largest}, majority vote",
                _BIN if len(found.member_accuracy) >= 1_000 else None,
                inputs,
            )
        if "ensembles" in names and found.vote:
            ranges = {size: (sum(a) / len(a), min(a), max(a)) for size, a in found.vote.items()}
            drawn[f"ensembles_{of}"] = accuracy_by_size(ranges)
    if "filters" in names:
        drawn["filters"] = filters(trained)
    if "training" in names and (run / "metrics.csv").exists():
        drawn["training"] = training(run)
    for name, picture in drawn.items():
        save_png(picture, out / f"{name}.png")
    return [out / f"{name}.png" for name in drawn]


def filters(trained: Trained) -> Figure:
    """25 samples (columns) of two first-layer filters, a slice of a second-layer one and of a third-layer one (rows)."""
    from matplotlib.figure import Figure

    with torch.no_grad():
        weights = trained.net.unflatten(trained.sampler(torch.arange(SAMPLES)).cpu())
    first, second, third = (weights[name] for name, shape, _ in trained.net.layout[:6] if len(shape) > 1)
    rows = [first[:, 0, 0], first[:, 1, 0], second[:, 0, 0], third.unflatten(2, (16, 7, 7))[:, 0, 0]]
    picture = Figure(figsize=(0.4 * SAMPLES, 0.45 * len(rows)), layout="constrained")
    for line, row in zip(picture.subplots(len(rows), SAMPLES), rows, strict=True):
        limit = row.abs().max().item()
        for axes, image in zip(line, row, strict=True):
            axes.imshow(image.numpy(), cmap="RdBu", vmin=-limit, vmax=limit)
            axes.axis("off")
    return picture


def training(run: Path) -> Figure:
    """Cross-entropy and entropy against the step, of batches and of validation."""
    batches = read_table(run / "metrics.csv")
    validations = read_table(run / "validation.csv") if (run / "validation.csv").exists() else []
    picture, axes = figure()
    other = axes.twinx()
    for rows, style in ((batches, "-"), (validations, "o")):
        steps = [int(row["step"]) for row in rows]
        axes.plot(steps, [float(row["cross_entropy"]) for row in rows], style, color=ONE)
        other.plot(steps, [float(row["entropy"]) for row in rows], style, color=MANY)
    axes.set(xlabel="step (dots: validation)", yscale="log")
    axes.set_ylabel("cross-entropy, nats", color=ONE)
    other.set_ylabel("entropy of the weights, nats", color=MANY)
    return picture
