"""The figures of functional_images/faces, as PNG: figures 3, 6 and 7 of the paper, reconstructions, curves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ....data.bicubic import resize_bicubic
from ...figures import figure, picture_rows, save_png
from ..figures import training
from .paths import KINDS, Measured, Paths

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = ("reconstructions", "interpolation", "pixels", "layers", "distances", "training")
_LABELS = {
    "weights": "between weights", "pixels": "between pictures", "reconstructions": "between reconstructions"
}  # fmt: skip
_STYLES = {"weights": "-", "pixels": ":", "reconstructions": "--"}


@dataclass(frozen=True)
class Drawn:
    """Pictures in [0,1]."""

    originals: Tensor
    """[N,3,S,S]."""
    reconstructions: Tensor
    """[N,3,S,S]."""
    enlarged: Tensor
    """[N,3,R,R], of the same functions."""
    paths: Paths
    layers: Tensor
    """[L,T,3,S,S]."""
    measured: Measured


def draw(names: tuple[str, ...], drawn: Drawn, run: Path, out: Path) -> list[Path]:
    """Draws the figures named into `out` and returns their paths. run: the folder with the training's CSV files."""
    found: dict[str, Figure] = {}
    if "reconstructions" in names:
        found["reconstructions"] = reconstructions(drawn)
    t = [f"{value:.2g}" for value in torch.linspace(0, 1, drawn.paths.weights.shape[1]).tolist()]
    lines = {"interpolation": drawn.paths.weights, "pixels": drawn.paths.pixels, "layers": drawn.layers}
    found |= {name: picture_rows([list(row) for row in rows], t) for name, rows in lines.items() if name in names}
    if "distances" in names:
        found["distances"] = distances(drawn.measured)
    if "training" in names and (run / "metrics.csv").exists():
        found["training"] = training(run, "psnr", "psnr", "PSNR, dB")
    return [save_png(picture, out / f"{name}.png") for name, picture in found.items()]


def reconstructions(drawn: Drawn) -> Figure:
    """Original, reconstruction, the same function at a higher resolution, and what bicubic makes of the original."""
    size = drawn.enlarged.shape[-1]
    side = drawn.originals.shape[-1]
    bicubic = resize_bicubic(drawn.originals, (size, size))
    rows = zip(drawn.originals, drawn.reconstructions, drawn.enlarged, bicubic, strict=True)
    titles = (f"original, {side}", f"its function at {side}", f"at {size}", f"bicubic at {size}")
    return picture_rows([list(row) for row in rows], titles, 1.8)


def distances(measured: Measured) -> Figure:
    """The mean distance to the nearest training picture along the paths."""
    drawn, axes = figure()
    t = torch.linspace(0, 1, measured.distance["weights"].shape[1])
    for kind in KINDS:
        axes.plot(t, measured.distance[kind].mean(0), _STYLES[kind], color="#1f5fa8", label=_LABELS[kind])
    axes.set(xlabel="t", ylabel="distance to the nearest\ntraining picture, RMS")
    axes.legend()
    return drawn
