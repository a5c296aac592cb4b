"""The figures of functional_images/super_resolution, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ...figures import MANY, ONE, figure, picture_rows, save_png, show_picture
from ...training import read_table
from .metrics import luma

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = ("pictures", "stretched", "filled", "training")


@dataclass(frozen=True)
class Compared:
    """One picture: low resolution, bicubic, ours and the original, [C,h,w] and three times [C,H,W]."""

    name: str
    scale: float
    low: Tensor
    bicubic: Tensor
    ours: Tensor
    high: Tensor


@dataclass(frozen=True)
class Filled:
    """A picture with holes, filled plainly, by ours, and the original, [C,H,W]."""

    holes: Tensor
    plain: Tensor
    ours: Tensor
    original: Tensor


def draw(
    names: Sequence[str], compared: Sequence[Compared], stretched: Tensor, filled: Sequence[Filled], run: Path, out: Path,
) -> list[Path]:  # fmt: skip
    """Draws the figures named into `out` and returns their paths. run: the folder with the training's CSV files."""
    found: dict[str, Figure] = {}
    if "pictures" in names:
        found["pictures"] = pictures(compared)
    if "stretched" in names:
        found["stretched"] = picture_rows([[compared[0].low, stretched]], ["low resolution", "stretched"], 3.4)
    if "filled" in names and filled:
        rows = [[f.holes, f.plain, f.ours, f.original] for f in filled]
        found["filled"] = picture_rows(rows, ["missing pixels", "filled plainly", "ours", "original"], 3.4)
    if "training" in names and (run / "metrics.csv").exists():
        found["training"] = training(run)
    return [save_png(picture, out / f"{name}.png") for name, picture in found.items()]


def pictures(compared: Sequence[Compared]) -> Figure:
    """Low resolution, bicubic, ours, the original, and where ours errs: |difference| of luma."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(12, 2.6 * len(compared)), layout="constrained")
    for line, c in zip(drawn.subplots(len(compared), 5, squeeze=False), compared, strict=True):
        parts = {"low resolution": c.low, "bicubic": c.bicubic, "ours": c.ours, "original": c.high}
        for axes, (title, picture) in zip(line, parts.items(), strict=False):
            show_picture(axes, picture, f"{c.name}, {title}" + (f" ×{c.scale:g}" if title == "ours" else ""))
        shown = line[4].imshow((luma(c.ours) - luma(c.high)).abs().numpy(), cmap="magma", vmin=0, vmax=60)
        line[4].set_title("error of ours, levels of 255", fontsize=8)
        line[4].axis("off")
        drawn.colorbar(shown, ax=line[4], fraction=0.05)
    return drawn


def training(run: Path) -> Figure:
    """PSNR of the drawn pixels, and the validation's gains over bicubic."""
    drawn, axes = figure()
    rows = read_table(run / "metrics.csv")
    axes.plot(
        [int(r["step"]) for r in rows], [float(r["psnr"]) for r in rows], color=MANY, linewidth=0.5, label="batches"
    )
    axes.set(xlabel="step", ylabel="PSNR of all channels, dB")
    if (run / "validation.csv").exists() and (rows := read_table(run / "validation.csv")):
        gains, styles = [name for name in rows[0] if name.startswith("gain_")], ("-", "--", ":", "-.")
        right = axes.twinx()
        for i, name in enumerate(gains):
            line = [float(r[name]) for r in rows]
            style = styles[i % len(styles)]
            right.plot([int(r["step"]) for r in rows], line, style, color=ONE, label=name.removeprefix("gain_x") + "×")
        right.set_ylabel("gain over bicubic, dB")
        right.legend(title="validation")
    return drawn
