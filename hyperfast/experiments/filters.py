"""Samples of single filters (Deutsch, figures 3 and 5; HyperGAN, figure 6), and how much each filter varies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..nn import TargetNet
from .experiment import Trained
from .figures import save_png
from .tables import write_csv, write_json


@torch.no_grad()
def run(
    trained: Trained, samples: int, slices: Callable[[TargetNet, Tensor], dict[str, Tensor]], out: Path
) -> list[Path]:
    """filters.png and the same as numbers, filters.json; filters.csv with every filter's spread().

    slices: (net, theta [M,P]) -> what is drawn, name -> [M,rows,columns]. samples: M.
    """
    theta = trained.sampler(torch.arange(samples)).cpu()
    drawn = slices(trained.net, theta)
    write_json(out / "filters.json", {name: values.tolist() for name, values in drawn.items()})
    write_csv(out / "filters.csv", spread(trained.net, theta))
    return [_draw(drawn, out / "filters.png"), out / "filters.json", out / "filters.csv"]


def spread(net: TargetNet, theta: Tensor) -> list[dict[str, str | int | float]]:
    """Of every filter but the last layer's, bias included: root mean square of its deviation from its mean, over that of itself.

    0: every network has this filter; 1: the filter's mean over the networks is 0.
    """
    rows: list[dict[str, str | int | float]] = []
    for layer, filters in enumerate(_layers(net, theta)[:-1], 1):
        of_mean = filters - filters.mean(0)
        relative = (of_mean.square().mean((0, 2)) / filters.square().mean((0, 2)).clamp_min(1e-300)).sqrt()
        rows += [{"layer": layer, "filter": i, "spread": value} for i, value in enumerate(relative.tolist(), 1)]
    return rows


def _layers(net: TargetNet, theta: Tensor) -> list[Tensor]:
    """[M,filters,n] float64 of each layer: a filter's weights, and its bias where it has one."""
    layers: dict[str, list[Tensor]] = {}
    for name, values in net.unflatten(theta).items():
        layers.setdefault(name.rpartition(".")[0], []).append(
            values.flatten(2) if values.dim() > 2 else values[..., None]
        )
    return [torch.cat(parts, 2).double() for parts in layers.values()]


def _draw(drawn: dict[str, Tensor], path: Path) -> Path:
    """Samples in columns, filters in rows; each image has colours of its own scale, white is 0."""
    from matplotlib.figure import Figure

    samples = len(next(iter(drawn.values())))
    picture = Figure(figsize=(0.4 * samples + 1.2, 0.45 * len(drawn)), layout="constrained")
    lines = picture.subplots(len(drawn), samples, squeeze=False)
    for line, (name, row) in zip(lines, drawn.items(), strict=True):
        for axes, image in zip(line, row, strict=True):
            limit = image.abs().max().item()
            axes.imshow(image.numpy(), cmap="RdBu", vmin=-limit, vmax=limit)
            axes.axis("off")
        line[0].text(-0.3, 0.5, name, ha="right", va="center", fontsize=8, transform=line[0].transAxes)
    save_png(picture, path)
    return path
