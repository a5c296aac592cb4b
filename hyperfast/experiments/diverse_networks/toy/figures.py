"""The figures of diverse_networks/toy, as PNG: figure 1 (a) and (b) of the paper, and the training's curves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ...figures import MANY, ONE, figure, save_png
from ...training import read_table
from .mixture import value

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .path import Path1D

FIGURES = ("points", "profile", "training")
_COLOURS = "plasma"  # of z, in both parts of figure 1


def draw(names: tuple[str, ...], found: Path1D, run: Path, out: Path) -> list[Path]:
    """Draws the figures named into `out` and returns their paths. run: the folder with the training's CSV file."""
    drawn: dict[str, Figure] = {}
    if "points" in names:
        drawn["points"] = points(found)
    if "profile" in names:
        drawn["profile"] = profile(found)
    if "training" in names and (run / "metrics.csv").exists():
        drawn["training"] = training(run)
    for name, picture in drawn.items():
        save_png(picture, out / f"{name}.png")
    return [out / f"{name}.png" for name in drawn]


def points(found: Path1D) -> Figure:
    """Figure 1 (a): the points, coloured by z, over the values of the mixture."""
    picture, axes = figure(5.6, 4.8)
    y = found.y.cpu()
    low, high = (torch.stack([y.amin(0), y.amax(0)]) + torch.tensor([[-1.0], [1.0]])).tolist()
    low, high = [min(v, -7.0) for v in low], [max(v, 7.0) for v in high]
    across, up = torch.linspace(low[0], high[0], 300), torch.linspace(low[1], high[1], 300)
    plane = value(torch.cartesian_prod(across, up)).view(300, 300).T
    axes.imshow(plane.numpy(), origin="lower", extent=(low[0], high[0], low[1], high[1]), cmap="Greys", aspect="equal")
    dots = axes.scatter(y[:, 0].numpy(), y[:, 1].numpy(), s=6, c=found.z.cpu().numpy(), cmap=_COLOURS)
    picture.colorbar(dots, label="z")
    axes.set(xlabel="first coordinate", ylabel="second coordinate")
    return picture


def profile(found: Path1D) -> Figure:
    """Figure 1 (b): the mixture's values along the path (solid), and distances to the nearest point (dashed)."""
    picture, axes = figure()
    z = found.z.cpu().numpy()
    axes.plot(z, found.value.cpu().numpy(), color=ONE)
    axes.scatter(z, [0.0] * len(z), s=10, c=z, cmap=_COLOURS, marker="|")
    other = axes.twinx()
    other.plot(z, found.distance.cpu().numpy(), "--", color=MANY)
    axes.set(xlabel="z", xlim=(-1, 1))
    axes.set_ylabel("value of the mixture", color=ONE)
    other.set_ylabel("distance to the nearest point", color=MANY)
    other.set_ylim(bottom=0)
    return picture


def training(run: Path) -> Figure:
    """Mean value and entropy of the batches against the step: means of 20 rows, as a batch has few points."""
    rows = read_table(run / "metrics.csv")
    groups = [rows[at : at + 20] for at in range(0, len(rows), 20)]
    mean = lambda name: [sum(float(row[name]) for row in group) / len(group) for group in groups]
    picture, axes = figure()
    axes.plot(mean("step"), mean("value"), color=ONE)
    other = axes.twinx()
    other.plot(mean("step"), mean("entropy"), color=MANY)
    axes.set(xlabel="step")
    axes.set_ylabel("value of the mixture", color=ONE)
    other.set_ylabel("entropy of the points, nats", color=MANY)
    return picture
