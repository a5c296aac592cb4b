"""Figures that several experiments draw. matplotlib's Figure is used directly, which draws PNGs with Agg: no window, no state."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MANY, ONE = "#7aa6c2", "#c0392b"  # colours: what there are many of, and what is singled out


def figure(width: float = 7.0, height: float = 3.2) -> tuple[Figure, Axes]:
    """An empty figure of that many inches, and its axes."""
    from matplotlib.figure import Figure

    empty = Figure(figsize=(width, height), layout="constrained")
    return empty, empty.subplots()


def save_png(drawn: Figure, path: Path, svg: bool = False) -> Path:
    """Writes the figure, whole or not at all, and returns its path. svg: also as SVG, beside it under that suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for target in (path.with_suffix(".svg"), path) if svg else (path,):
        scratch = target.with_name(f"{target.name}.{os.getpid()}.partial")
        drawn.savefig(scratch, format=target.suffix[1:], dpi=130)
        os.replace(scratch, target)
    return path


def show_picture(axes: Axes, picture: Tensor, title: str = "") -> None:
    """A picture [3,H,W] in [0,1], RGB, every pixel a square."""
    axes.imshow(picture.clamp(0, 1).permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
    axes.set_title(title, fontsize=8)
    axes.axis("off")


def picture_rows(rows: Sequence[Sequence[Tensor]], titles: Sequence[str] = (), size: float = 1.2) -> Figure:
    """Pictures [3,H,W] in rows and columns, each `size` inches wide. titles: of the columns."""
    from matplotlib.figure import Figure

    wide = max(map(len, rows))
    drawn = Figure(figsize=(size * wide, (size + 0.05) * len(rows) + 0.2 * bool(titles)), layout="constrained")
    grid = drawn.subplots(len(rows), wide, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for line, row in zip(grid, rows, strict=True):
        for axes, picture in zip(line, row, strict=False):
            show_picture(axes, picture)
    for axes, title in zip(grid[0], titles, strict=False):
        axes.set_title(title, fontsize=8)
    return drawn


def accuracy_histogram(
    member_accuracy: Tensor,
    ensemble_accuracy: float | None,
    ensemble_name: str = "ensemble",
    bin_width: float | None = None,
    inputs: str = "held-out digits",
) -> Figure:
    """Accuracies [M] of single networks, with the ensemble's as a line. bin_width in percent; None: 30 bins."""
    percent = 100 * member_accuracy.double().cpu().numpy()
    bins: int | list[float] = 30
    if bin_width is not None:
        first, last = (int(edge // bin_width) for edge in (percent.min(), percent.max()))
        bins = [bin_width * i for i in range(first, last + 2)]
    drawn, axes = figure()
    axes.hist(percent, bins=bins, color=MANY, label="single networks")
    if ensemble_accuracy is not None:
        axes.axvline(100 * ensemble_accuracy, color=ONE, label=ensemble_name)
    axes.set(xlabel=f"accuracy on {inputs}, %", ylabel="networks")
    axes.legend()
    return drawn


def accuracy_by_size(by_size: Mapping[int, tuple[float, float, float]]) -> Figure:
    """{members: (mean, lowest, highest accuracy)} of ensembles, against their size."""
    drawn, axes = figure()
    sizes = list(by_size)
    mean, low, high = ([100 * v for v in values] for values in zip(*by_size.values(), strict=True))
    axes.fill_between(sizes, low, high, color=MANY, alpha=0.4, label="range")
    axes.plot(sizes, mean, "o-", color=ONE, label="mean")
    axes.set(xscale="log", xlabel="networks in the ensemble", ylabel="accuracy, %")
    axes.legend()
    return drawn
