"""The figures of functional_images/shapes, as PNG: figures 8 and 9 of the paper, and the training's curve."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ...figures import ONE, save_png
from ..figures import training

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURES = ("shapes", "interpolation", "training")
_POINTS = "#1f5fa8"


@dataclass(frozen=True)
class Drawn:
    """Pictures and generated points; x to the right, y down, in a picture of side 1."""

    pictures: Tensor
    """[N,S,S]."""
    points: Tensor
    """[N,points,2], at equal angles of the circle."""
    outlines: Tensor
    """[N,steps,2], in the order of the angle, closed."""
    between: Tensor
    """[pairs,between,points,2]: points of interpolated weights."""


def draw(names: tuple[str, ...], drawn: Drawn, run: Path, out: Path) -> list[Path]:
    """Draws the figures named into `out` and returns their paths. run: the folder with the training's CSV files."""
    found: dict[str, Figure] = {}
    if "shapes" in names:
        found["shapes"] = shapes(drawn)
    if "interpolation" in names and len(drawn.between):
        found["interpolation"] = interpolation(drawn)
    if "training" in names and (run / "metrics.csv").exists():
        found["training"] = training(run, "loss", "cross_entropy", "cross-entropy, nats")
    return [save_png(picture, out / f"{name}.png") for name, picture in found.items()]


def _frame(axes: Axes) -> None:
    axes.set(xlim=(0, 1), ylim=(1, 0), aspect="equal", xticks=[], yticks=[])


def shapes(drawn: Drawn) -> Figure:
    """Figure 8: the digit; the points that its network makes of the circle, with the line traced around it."""
    from matplotlib.figure import Figure

    columns = min(6, len(drawn.pictures))
    rows = -(-len(drawn.pictures) // columns)
    picture = Figure(figsize=(1.5 * columns, 3.1 * rows), layout="constrained")
    grid = picture.subplots(2 * rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for i, digit in enumerate(drawn.pictures):
        above, below = (grid[2 * (i // columns) + part][i % columns] for part in (0, 1))
        above.imshow(digit.numpy(), cmap="Greys", extent=(0, 1, 1, 0), vmin=0, vmax=1)
        below.plot(*drawn.outlines[i].T.numpy(), color=ONE, linewidth=0.6)
        below.scatter(*drawn.points[i].T.numpy(), s=3, color=_POINTS, zorder=2)
        for axes in (above, below):
            axes.axis("on")
            _frame(axes)
    return picture


def interpolation(drawn: Drawn) -> Figure:
    """Figure 9: a row a pair of digits, points of the networks between their weights."""
    from matplotlib.figure import Figure

    rows, columns = drawn.between.shape[:2]
    picture = Figure(figsize=(1.2 * columns, 1.2 * rows), layout="constrained")
    grid = picture.subplots(rows, columns, squeeze=False)
    for axes, points in zip(grid.flat, drawn.between.flatten(0, 1), strict=True):
        axes.scatter(*points.T.numpy(), s=1.5, color=_POINTS)
        _frame(axes)
    return picture
