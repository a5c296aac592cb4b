"""Pictures of the accuracies and of the training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...accuracy import Scores
from ...figures import MANY, ONE, accuracy_by_size, accuracy_histogram, figure
from ...training import read_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BIN = 0.05  # percent, as in the paper, whose 4,000 networks fill such bins


def histogram(found: Scores, inputs: str) -> Figure:
    """Accuracies of single networks, and that of the first of the largest ensembles."""
    largest = max(found.vote, default=1)
    return accuracy_histogram(
        found.member_accuracy,
        found.vote[largest][0] if found.vote else None,
        f"an ensemble of {largest}, majority vote",
        _BIN if len(found.member_accuracy) >= 1_000 else None,
        inputs,
    )


def ensembles(found: Scores) -> Figure:
    """Accuracy by majority vote against the size."""
    return accuracy_by_size({size: (sum(a) / len(a), min(a), max(a)) for size, a in found.vote.items()})


def training(run: Path, other_column: str, other_label: str) -> Figure:
    """Cross-entropy and another column of the training's CSV files against the step, of batches and of validation."""
    batches = read_table(run / "metrics.csv")
    validations = read_table(run / "validation.csv") if (run / "validation.csv").exists() else []
    picture, axes = figure()
    other = axes.twinx()
    for rows, style in ((batches, "-"), (validations, "o")):
        steps = [int(row["step"]) for row in rows]
        axes.plot(steps, [float(row["cross_entropy"]) for row in rows], style, color=ONE)
        other.plot(steps, [float(row[other_column]) for row in rows], style, color=MANY)
    axes.set(xlabel="step (dots: validation)", yscale="log")
    axes.set_ylabel("cross-entropy, nats", color=ONE)
    other.set_ylabel(other_label, color=MANY)
    return picture
