"""Figures 6, 7 and 16 to 18 of the paper; handwriting as PNG and as SVG."""

from __future__ import annotations

from collections.abc import Sequence
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


def draw(name: str, runs: Sequence[Path], out: Path, samples: Tensor, changes: Tensor | None) -> Path | None:
    """Writes one figure into `out`, of the training in the first folder, others beside it; None where the cell has no such figure.

    samples: [lines,T,3] in the data's units; changes: [4,T-1] of the first of them.
    """
    if name == "loss":
        return loss_curves(runs, "log_loss", "log-loss, nats a line", out / "loss.png")
    if name == "samples":
        return _samples(samples, out / "samples.png")
    return None if changes is None else _weight_changes(samples[0], changes, out / "weight_changes.png")


def _write(axes: Axes, lines: Tensor) -> float:
    """Draws lines [N,T,3] below each other, x and y in one scale, without axes; their height over their width."""
    left, right, top = [], [], 0.0
    for line in lines:
        strokes = strokes_of(line)
        low, high = (f(np.concatenate(strokes), axis=0) for f in (np.min, np.max))
        for stroke in strokes:
            axes.plot(stroke[:, 0], stroke[:, 1] - low[1] + top, color="black", linewidth=0.8)
        left.append(low[0])
        right.append(high[0])
        top += 1.1 * (high[1] - low[1])
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.set_axis_off()
    return top / max(max(right) - min(left), 1e-6)


def _samples(samples: Tensor, path: Path) -> Path:
    """Figures 16 to 18: sampled lines below each other."""
    drawn, axes = figure()
    shape = _write(axes, samples)
    drawn.set_size_inches(8, min(max(8 * shape, 1), 16))
    return save_png(drawn, path, svg=True)


def _weight_changes(line: Tensor, changes: Tensor, path: Path) -> Path:
    """Figure 7: a sampled line, and below it over time how far each gate's scales moved; ticks where the pen is lifted."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(10, 3), layout="constrained")
    above, below = drawn.subplots(2, 1, height_ratios=(2, 1))
    _write(above, line.unsqueeze(0))
    strip(below, changes)
    lifts = np.flatnonzero(line[:-1, 2].cpu().numpy())
    below.set_xticks(lifts, [""] * len(lifts))
    below.tick_params(axis="x", length=4)
    below.set_xlabel("points; the pen is lifted at the ticks")
    return save_png(drawn, path, svg=True)
