"""Figures 6, 7 and 16 to 18 of the paper; handwriting as PNG and as SVG."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ....data import strokes_of
from ...figures import figure, save_png
from ..figures import loss_curves, strip

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIGURES = ("loss", "samples", "weight_changes")


def draw(name: str, run: Path, out: Path, samples: Tensor, changes: Tensor | None) -> Path | None:
    """Writes one figure into `out`, of the training in the folder `run`; None where the cell has no such figure.

    samples: [lines,T,3] in the data's units; changes: [4,T-1] of the first of them.
    """
    if name == "loss":
        return loss_curves(run, "log_loss", "log-loss, nats a line", out / "loss.png")
    if name == "samples":
        return _samples(samples, out / "samples.png")
    return None if changes is None else _weight_changes(samples[0], changes, out / "weight_changes.png")


def _write(axes: Axes, line: Tensor, top: float = 0.0) -> float:
    """Draws a line with its highest point at `top`, y down; its lowest point."""
    strokes = strokes_of(line)
    y = np.concatenate(strokes)[:, 1]
    for stroke in strokes:
        axes.plot(stroke[:, 0], stroke[:, 1] - y.min() + top, color="black", linewidth=0.8)
    return top + float(np.ptp(y))


def _samples(samples: Tensor, path: Path) -> Path:
    """Figures 16 to 18: sampled lines below each other."""
    drawn, axes = figure(8, 0.7 * len(samples) + 0.3)
    bottom = 0.0
    for line in samples:
        bottom = _write(axes, line, bottom)
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.set_axis_off()
    return save_png(drawn, path, svg=True)


def _weight_changes(line: Tensor, changes: Tensor, path: Path) -> Path:
    """Figure 7: a sampled line, and below it over time how far each gate's scales moved; ticks where the pen is lifted."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(10, 3), layout="constrained")
    above, below = drawn.subplots(2, 1, height_ratios=(2, 1))
    _write(above, line)
    above.set_aspect("equal")
    above.invert_yaxis()
    above.set_axis_off()
    strip(below, changes)
    lifts = np.flatnonzero(line[:-1, 2].cpu().numpy())
    below.set_xticks(lifts, [""] * len(lifts))
    below.tick_params(axis="x", length=4)
    below.set_xlabel("points; the pen is lifted at the ticks")
    return save_png(drawn, path, svg=True)
