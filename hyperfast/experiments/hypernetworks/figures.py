"""What the experiments' figures share: curves of a training, the strip of weight changes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ..figures import MANY, ONE, figure, save_png
from ..training import read_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GATES = ("i", "f", "g", "o")


def loss_curves(run: Path, metric: str, label: str, path: Path) -> Path:
    """Figure 6: the metric over steps, of the batches trained on and of the validation data."""
    drawn, axes = figure()
    for file, colour, what in (("metrics.csv", MANY, "training"), ("validation.csv", ONE, "validation")):
        rows = read_table(run / file) if (run / file).exists() else []
        axes.plot([int(row["step"]) for row in rows], [float(row[metric]) for row in rows], color=colour, label=what)
    axes.set(xlabel="step", ylabel=label)
    axes.legend()
    return save_png(drawn, path)


def strip(axes: Axes, changes: Tensor) -> None:
    """Draws weight changes [4,T-1], the darker the larger: a row a gate, a column a step.

    The largest 2 % are equally dark: the first steps, away from the zero state, would leave the others no colour.
    """
    largest = float(changes.flatten().quantile(0.98))
    axes.imshow(changes.cpu().numpy(), aspect="auto", cmap="Reds", interpolation="nearest", vmin=0, vmax=largest)
    axes.set_yticks(range(4), _GATES)
    axes.tick_params(length=0)
