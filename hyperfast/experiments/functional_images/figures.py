"""Figures that these experiments share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..figures import MANY, ONE, figure
from ..training import read_columns

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def training(run: Path, batches: str, validation: str, label: str) -> Figure:
    """A column of metrics.csv and one of validation.csv, of the same quantity, against the step."""
    drawn, axes = figure()
    axes.plot(*read_columns(run / "metrics.csv", "step", batches), color=MANY, linewidth=0.7, label="batches")
    found = read_columns(run / "validation.csv", "step", validation)
    axes.plot(*found, color=ONE, marker="o", markersize=3, label="validation")
    axes.set(xlabel="step", ylabel=label)
    axes.legend()
    return drawn
