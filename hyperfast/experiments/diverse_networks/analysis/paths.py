"""Accuracies along paths between two networks (Deutsch, section 4.2.2, figures 7 and 21).

    direct        t G(z_2) + (1 - t) G(z_1)
    interpolated  G(t z_2 + (1 - t) z_1)

G's output is gauged. Both paths have the same ends.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import torch
from torch import Tensor

from ....data import Labelled
from ...experiment import Trained
from ...figures import MANY, ONE, save_png
from ...networks import accuracies
from ...tables import write_csv, write_json
from ...training import ProgressBar
from .config import Evaluation


def run(trained: Trained, data: Labelled, settings: Evaluation, out: Path) -> list[Path]:
    """paths.png, paths.csv, and paths.json with the accuracy half-way, on average over the pairs."""
    points, found = torch.linspace(0, 1, settings.path_points), []
    with ProgressBar("paths", settings.path_pairs) as bar:
        for pair in range(settings.path_pairs):
            direct, interpolated = walk(trained, pair, points)
            found.append((accuracies(trained.net, direct, data), accuracies(trained.net, interpolated, data)))
            bar.update(pair + 1)
    rows = [
        {"pair": pair, "t": t, "direct": a, "interpolated": b}
        for pair, (direct, interpolated) in enumerate(found, 1)
        for t, a, b in zip(points.tolist(), direct.tolist(), interpolated.tolist(), strict=True)
    ]
    return [
        _draw(points, found, out / "paths.png"),
        write_csv(out / "paths.csv", rows),
        write_json(out / "paths.json", summary(found)),
    ]


@torch.no_grad()
def walk(trained: Trained, pair: int, points: Tensor) -> tuple[Tensor, Tensor]:
    """(direct, interpolated), each theta [points,P], from member 2*pair to the one after it."""
    if trained.noise is None or trained.generate is None:
        raise ValueError("paths need a generator of networks that takes any noise; this one has a sampler alone")
    z = trained.noise(torch.tensor([2 * pair, 2 * pair + 1]))
    t = points.to(z).unsqueeze(1)
    ends = trained.generate(z)
    return torch.lerp(ends[:1], ends[1:], t), trained.generate(torch.lerp(z[:1], z[1:], t))


def summary(found: list[tuple[Tensor, Tensor]]) -> dict[str, dict[str, float]]:
    """Accuracy at the ends, half-way (of an even number of points the mean of the two in the middle), and the lowest."""
    told: dict[str, dict[str, float]] = {}
    for name, curves in zip(("direct", "interpolated"), zip(*found, strict=True), strict=True):
        count = len(curves[0])
        middle = slice((count - 1) // 2, count // 2 + 1)
        told[name] = {
            "ends": statistics.fmean(float(curve[[0, -1]].mean()) for curve in curves),
            "middle": statistics.fmean(float(curve[middle].mean()) for curve in curves),
            "lowest": statistics.fmean(float(curve.min()) for curve in curves),
        }
    return told


def _draw(points: Tensor, found: list[tuple[Tensor, Tensor]], path: Path) -> Path:
    from matplotlib.figure import Figure

    columns = min(5, len(found))
    lines = -(-len(found) // columns)
    picture = Figure(figsize=(2 * columns + 1, 1.7 * lines + 0.6), layout="constrained")
    every = picture.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for axes, (direct, interpolated) in zip(every, found, strict=False):
        axes.plot(points, 100 * interpolated, "-", color=ONE, label="interpolated")
        axes.plot(points, 100 * direct, "--", color=MANY, label="direct")
    for axes in every[len(found) :]:
        axes.axis("off")
    every[0].legend(fontsize=7)
    picture.supxlabel("t", fontsize=9)
    picture.supylabel("accuracy, %", fontsize=9)
    save_png(picture, path)
    return path
