"""Figures 4, 5 and 6 of the paper."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ...figures import MANY, ONE, figure, save_png
from ...training import read_table

FIGURES = ("loss", "weight_changes", "histogram")
_GATES = ("i", "f", "g", "o")


def draw(name: str, run: Path, out: Path, changes: tuple[str, Tensor] | None, cells: Tensor | None) -> Path | None:
    """Writes one figure into `out`, of the training in the folder `run`; None where the cell has no such figure."""
    if name == "loss":
        return _loss(run, out / "loss.png")
    if name == "weight_changes":
        return None if changes is None else _weight_changes(*changes, out / "weight_changes.png")
    return None if cells is None else _histogram(cells, out / "histogram.png")


def _loss(run: Path, path: Path) -> Path:
    """Figure 6: bits per character over steps, of the stretches trained on and of the validation text."""
    drawn, axes = figure()
    for file, colour, label in (("metrics.csv", MANY, "training"), ("validation.csv", ONE, "validation")):
        rows = read_table(run / file) if (run / file).exists() else []
        points = [(int(row["step"]), float(row["bits_per_character"])) for row in rows]
        axes.plot([p[0] for p in points], [p[1] for p in points], color=colour, label=label)
    axes.set(xlabel="step", ylabel="bits per character")
    axes.legend()
    return save_png(drawn, path)


def _weight_changes(text: str, changes: Tensor, path: Path) -> Path:
    """Figure 4: under each character, how far each gate's scales moved when the next one came."""
    drawn, axes = figure(0.09 * len(text) + 1, 1.5)
    axes.imshow(changes.cpu().numpy(), aspect="auto", cmap="Reds", interpolation="nearest")
    axes.set_yticks(range(4), _GATES)
    shown = [character if character.isprintable() else "⏎" for character in text]
    axes.set_xticks(range(changes.shape[1]), shown[: changes.shape[1]], fontfamily="monospace", fontsize=7)
    axes.tick_params(length=0)
    return save_png(drawn, path)


def _histogram(cells: Tensor, path: Path) -> Path:
    """Figure 5: how often the cells show which value."""
    drawn, axes = figure()
    axes.hist(cells.cpu().numpy(), bins=80, range=(-1, 1), density=True, color=MANY)
    axes.set(xlabel="φ(c)", ylabel="density")
    return save_png(drawn, path)
