"""Mean and deviation of generated curves (section 4.3, figure 2)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .... import ensemble
from ...experiment import Trained
from ...figures import save_png
from ...tables import write_csv, write_json
from ..figures import training
from .config import Config, Evaluation
from .train import load, load_config, noisy_points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = ("bands", "training")


@dataclass(frozen=True)
class Band:
    """What some networks say of each x."""

    mean: Tensor
    """[points]."""
    std: Tensor
    """[points]."""


def bands(trained: Trained, x: Tensor, networks: tuple[int, ...]) -> dict[int, Band]:
    """Number of networks -> their mean and standard deviation at x [points]."""
    found = {}
    for count in networks:
        r = ensemble.predict(trained.net, x.unsqueeze(1), (trained.sampler, count), ("mean", "var"))
        found[count] = Band(r.mean[:, 0].cpu(), r.var[:, 0].sqrt().cpu())
    return found


def summary(x: Tensor, found: dict[int, Band], deviations: float) -> list[dict[str, float]]:
    """Of each band, where there were points to learn from (|x| <= 4) and outside: its error, width and what it covers."""
    rows = []
    for count, band in found.items():
        row: dict[str, float] = {"networks": count}
        for name, where in (("inside", x.abs() <= 4), ("outside", x.abs() > 4)):
            error = (band.mean - x**3)[where]
            row[f"rms_error_{name}"] = error.square().mean().sqrt().item()
            row[f"std_{name}"] = band.std[where].mean().item()
            row[f"covered_{name}"] = (error.abs() <= deviations * band.std[where]).double().mean().item()
        rows.append(row)
    return rows


def run(
    settings: Evaluation, path: Path, out: Path, data_root: Path | None, device: torch.device, figures: tuple[str, ...]
) -> None:
    """`hyperfast evaluate hypergan/regression`: evaluation.json, bands.csv, figures."""
    trained, config = load(path, device, settings.seed), load_config(path)
    x = torch.linspace(-settings.limit, settings.limit, settings.points)
    found = bands(trained, x.to(device), settings.networks)
    rows = summary(x, found, settings.deviations)
    columns = {"x": x, "cubic": x**3}
    for count, band in found.items():
        columns |= {f"mean_{count}": band.mean, f"std_{count}": band.std}
    lines = zip(*(column.tolist() for column in columns.values()), strict=True)
    about = {"checkpoint": str(path), "step": trained.step, "settings": asdict(settings), "bands": rows}
    written = [
        write_json(out / "evaluation.json", about),
        write_csv(out / "bands.csv", [dict(zip(columns, line, strict=True)) for line in lines]),
    ]
    for row in rows:
        print(
            f"{row['networks']} networks: mean off by {row['rms_error_inside']:.2f} (rms), std {row['std_inside']:.2f} "
            f"for |x| <= 4; {row['rms_error_outside']:.2f} and {row['std_outside']:.2f} beyond"
        )
    if "bands" in figures:
        written.append(save_png(draw(x, found, config, settings.deviations), out / "bands.png"))
    if "training" in figures and (path.parent / "metrics.csv").exists():
        drawn = training(path.parent, "squared_error", "mean squared error")
        written.append(save_png(drawn, out / "training.png"))
    print("\n".join(map(str, written)))


def draw(x: Tensor, found: dict[int, Band], config: Config, deviations: float) -> Figure:
    """Figure 2: a panel for each number of networks."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(3.2 * len(found), 3.0), layout="constrained")
    panels = drawn.subplots(1, len(found), sharey=True, squeeze=False)[0]
    at, points = x.numpy(), noisy_points(config)
    for axes, (count, band) in zip(panels, found.items(), strict=True):
        mean, half = band.mean.numpy(), deviations * band.std.numpy()
        axes.fill_between(at, mean - half, mean + half, color="#cfe3f2", label=f"±{deviations:g} standard deviations")
        axes.plot(at, at**3, color="#1f4e79", label="x³")
        axes.plot(at, mean, color="grey", label="mean")
        axes.plot(points[0][:, 0].numpy(), points[1][:, 0].numpy(), "o", color="#c0392b", ms=3, label="points")
        axes.set(title=f"{count} networks", xlabel="x", ylim=(-250, 250))
    panels[0].legend(fontsize=7, loc="upper left")
    return drawn
