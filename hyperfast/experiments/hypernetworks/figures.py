"""What the experiments' figures share: curves of a training, the strip of weight changes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ..figures import save_png
from ..loop import SECONDS
from ..training import read_table

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
        timed, seconds = _columns(run / SECONDS, "step", "seconds")
        for file, style in (("metrics.csv", {"linewidth": 0.5, "alpha": 0.5}), ("validation.csv", {"label": run.name})):
            steps, values = _columns(run / file, "step", metric)
            by_step.plot(steps, values, color=f"C{number}", **style)
            if len(timed):
                by_time.plot(np.interp(steps, timed, seconds) / 3600, values, color=f"C{number}", **style)
    by_step.set(xlabel="step", ylabel=label)
    by_time.set(xlabel="hours of training")
    by_step.legend()
    return save_png(drawn, path)


def _columns(path: Path, *names: str) -> list[np.ndarray]:
    """Columns of a CSV file; empty where there is none."""
    rows = read_table(path) if path.exists() else []
    return [np.array([float(row[name]) for row in rows]) for name in names]


def strip(axes: Axes, changes: Tensor) -> None:
    """Draws weight changes [4,T-1], the darker the larger: a row a gate, a column a step.

    The largest 2 % are equally dark: the first steps, away from the zero state, would leave the others no colour.
    """
    largest = float(changes.flatten().quantile(0.98))
    axes.imshow(changes.cpu().numpy(), aspect="auto", cmap="Reds", interpolation="nearest", vmin=0, vmax=largest)
    axes.set_yticks(range(4), _GATES)
    axes.tick_params(length=0)
