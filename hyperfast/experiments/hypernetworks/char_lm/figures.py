"""Figures 4, 5 and 6 of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ...figures import MANY, figure, save_png
from ..figures import loss_curves, strip

FIGURES = ("loss", "weight_changes", "histogram")


def draw(
    name: str, runs: Sequence[Path], out: Path, changes: tuple[str, Tensor] | None, cells: Tensor | None
) -> Path | None:
    """Writes one figure into `out`, of the training in the first folder, others beside it; None where the cell has no such figure."""
    if name == "loss":
        return loss_curves(runs, "bits_per_character", "bits per character", out / "loss.png")
    if name == "weight_changes":
        return None if changes is None else _weight_changes(*changes, out / "weight_changes.png")
    return None if cells is None else _histogram(cells, out / "histogram.png")


def _weight_changes(text: str, changes: Tensor, path: Path) -> Path:
    """Figure 4: under each character, how far each gate's scales moved when the next one came."""
    drawn, axes = figure(0.09 * len(text) + 1, 1.5)
    strip(axes, changes)
    shown = [character if character.isprintable() else "⏎" for character in text]
    axes.set_xticks(range(changes.shape[1]), shown[: changes.shape[1]], fontfamily="monospace", fontsize=7)
    return save_png(drawn, path)


def _histogram(cells: Tensor, path: Path) -> Path:
    """Figure 5: how often the cells show which value."""
    drawn, axes = figure()
    axes.hist(cells.cpu().numpy(), bins=80, range=(-1, 1), density=True, color=MANY)
    axes.set(xlabel="φ(c)", ylabel="density")
    return save_png(drawn, path)
