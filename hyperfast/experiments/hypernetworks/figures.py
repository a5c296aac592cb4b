"""What the experiments' figures share: curves of a training, the strip of weight changes, mosaics of weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ..figures import save_png
from ..loop import SECONDS
from ..training import read_columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GATES = ("i", "f", "g", "o")


def loss_curves(runs: Sequence[Path], metric: str, label: str, path: Path) -> Path:
    """Figure 6: the metric of trainings, by their folders, over steps and over the hours spent in them.

    Thin: of the batches trained on; thick: of the validation data.
    """
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(9, 3.2), layout="constrained")
    by_step, by_time = drawn.subplots(1, 2, sharey=True)
    for number, run in enumerate(runs):
        timed, seconds = read_columns(run / SECONDS, "step", "seconds")
        for file, style in (("metrics.csv", {"linewidth": 0.5, "alpha": 0.5}), ("validation.csv", {"label": run.name})):
            steps, values = read_columns(run / file, "step", metric)
            by_step.plot(steps, values, color=f"C{number}", **style)
            if len(timed):
                by_time.plot(np.interp(steps, timed, seconds) / 3600, values, color=f"C{number}", **style)
    by_step.set(xlabel="step", ylabel=label)
    by_time.set(xlabel="hours of training")
    by_step.legend()
    return save_png(drawn, path)


def strip(axes: Axes, changes: Tensor) -> None:
    """Draws weight changes [4,T-1], the darker the larger: a row a gate, a column a step.

    The largest 2 % are equally dark: the first steps, away from the zero state, would leave the others no colour.
    """
    largest = float(changes.flatten().quantile(0.98))
    axes.imshow(changes.cpu().numpy(), aspect="auto", cmap="Reds", interpolation="nearest", vmin=0, vmax=largest)
    axes.set_yticks(range(4), _GATES)
    axes.tick_params(length=0)


def mosaic(tiles: Tensor, gap: int = 1) -> Tensor:
    """Tiles [R,C,h,w] as one picture [R * (h + gap) - gap, C * (w + gap) - gap]; NaN between them."""
    rows, columns, height, width = tiles.shape
    framed = F.pad(tiles, (0, gap, 0, gap), value=float("nan"))
    picture = framed.permute(0, 2, 1, 3).reshape(rows * (height + gap), columns * (width + gap))
    return picture[: rows * (height + gap) - gap, : columns * (width + gap) - gap]


def weight_pictures(rows: Sequence[Sequence[tuple[str, Tensor]]], title: str, path: Path) -> Path:
    """Weights (name, tiles [R,C,h,w]) as mosaics, in rows and columns of the figure; grey from the smallest to the largest."""
    from matplotlib.figure import Figure

    columns = max(map(len, rows))
    drawn = Figure(figsize=(4 * columns, 4.2 * len(rows) + 0.3), layout="constrained")
    drawn.suptitle(title, fontsize=9)
    for line, row in zip(drawn.subplots(len(rows), columns, squeeze=False), rows, strict=True):
        for axes in line:
            axes.axis("off")
        for axes, (name, tiles) in zip(line, row, strict=False):
            # enlarged by whole pixels, so that the drawing shows every weight as a square and blurs none
            axes.imshow(mosaic(tiles.float().cpu()).numpy(), cmap="gray", interpolation="nearest")
            axes.set_title(name, fontsize=9)
    return save_png(drawn, path)
