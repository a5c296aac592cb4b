"""Figures that HyperGAN's experiments share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..figures import MANY, ONE, figure
from ..training import read_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def training(run: Path, column: str = "cross_entropy", label: str = "cross-entropy, nats") -> Figure:
    """A loss of the batches and of validation against the step; of HyperGAN also the spread of the codes."""
    batches = read_table(run / "metrics.csv")
    validations = read_table(run / "validation.csv") if (run / "validation.csv").exists() else []
    column = column if batches and column in batches[0] else "loss"
    drawn, axes = figure()
    for rows, name, style in ((batches, column, "-"), (validations, "loss", "o")):
        axes.plot([int(row["step"]) for row in rows], [float(row[name]) for row in rows], style, color=ONE)
    axes.set(xlabel="step (dots: validation)", yscale="log")
    axes.set_ylabel(label, color=ONE)
    if batches and "code_std" in batches[0]:
        other = axes.twinx()
        other.plot([int(row["step"]) for row in batches], [float(row["code_std"]) for row in batches], color=MANY)
        other.set_ylabel("standard deviation of the codes", color=MANY)
    return drawn
